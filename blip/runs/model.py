"""A model on disk: its configuration, weights and tokenizer in one folder that every step takes and gives."""

from pathlib import Path

from blip.config import ConfigError, validate
from blip.config import read as read_config
from blip.data.tokenizer import Tokenizer
from blip.models.weights.files import write_model
from blip.models.weights.load import load
from blip.models.weights.source import SIDE_FILE
from blip.runs.config import RunConfig
from blip.tasks import training_state
from blip.tasks.alignment import AlignmentConfig
from blip.tasks.build import TaskConfig, build_model, build_task, inherits
from blip.tasks.captioning import CaptioningConfig
from blip.tasks.pretraining import Pretraining, PretrainingConfig
from blip.tasks.retrieval import Retrieval, RetrievalConfig
from blip.tasks.task import Task

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer"


def save_model(task: Task, cfg: RunConfig, folder: str | Path) -> None:
    """Writes what is needed to use the model or to learn from it on; teacher, queue and temperature go to a side file."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(cfg.model_dump_json(indent=1))
    write_model(task.model, folder / WEIGHTS)
    task.tokenizer.save(folder / TOKENIZER)
    if isinstance(task, Pretraining | Retrieval):
        training_state.save(task.alignment, folder / SIDE_FILE)


def read_run(folder: str | Path) -> RunConfig:
    """The configuration that a model was trained with. Raises ConfigError where there is none."""
    return validate(RunConfig, read_config(Path(folder) / CONFIG), str(Path(folder) / CONFIG))


def load_task(folder: str | Path, task: TaskConfig | None = None) -> Task:
    """A model in evaluation mode, as the task it was trained for or another one that uses its parts."""
    cfg = read_run(folder)
    task = task or cfg.task
    tokenizer = Tokenizer.from_folder(Path(folder) / TOKENIZER)
    model = build_model(task, cfg.model)
    load(model, str(Path(folder) / WEIGHTS), inherits(task))
    return build_task(task, model, tokenizer).eval()


def as_captioner(cfg: TaskConfig) -> CaptioningConfig:
    """How a model writes that was trained for a task. Raises ConfigError where it cannot."""
    match cfg:
        case CaptioningConfig():
            return cfg
        case PretrainingConfig():
            return CaptioningConfig(prompt="", text=cfg.text)
        case _:
            raise ConfigError(f"the captioner must be trained for captioning or pretraining, not for {cfg.type}")


def as_filter(cfg: TaskConfig) -> RetrievalConfig:
    """How a model judges that was trained for a task. Raises ConfigError where it cannot."""
    match cfg:
        case RetrievalConfig():
            return cfg.model_copy(update={"alignment": AlignmentConfig(queue=1)})
        case PretrainingConfig():
            return RetrievalConfig(alignment=AlignmentConfig(queue=1), text=cfg.text)
        case _:
            raise ConfigError(f"the filter must be trained for retrieval or pretraining, not for {cfg.type}")
