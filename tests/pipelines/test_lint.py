"""Each fault that the lint knows, in a pipeline that compiles."""
# ruff: noqa: ARG001

from pathlib import Path
from typing import Any

import pytest
from kfp import compiler, dsl, kubernetes

from pipelines import lint

IMAGE = "blip-python:1"
SETTINGS = ["key=1"]


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def say(settings: list[str], word: str = "") -> str:
    return word


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def careless(word: str = ""):
    pass


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def write(settings: list[str], text: dsl.Output[dsl.Dataset]):
    pass


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def read(settings: list[str], text: dsl.Input[dsl.Dataset]):
    pass


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def mapped(settings: list[str], sizes: dict = {}):  # noqa: B006
    pass


@dsl.component(base_image=IMAGE, packages_to_install=["six"])
def greedy(settings: list[str]):
    pass


@dsl.container_component
def contained(settings: list[str], word: str = "a"):
    return dsl.ContainerSpec(image=IMAGE, command=["echo", word])


@pytest.fixture
def faults(tmp_path: Path):
    """Returns the faults of a pipeline made of a function."""

    def find(function) -> list[str]:
        compiler.Compiler().compile(dsl.pipeline(name="trapped")(function), str(tmp_path / "trapped.yaml"))
        return lint.faults((tmp_path / "trapped.yaml").read_text(encoding="utf-8"))

    return find


def lasting(task: Any) -> dsl.PipelineTask:
    """Returns the task with a user and retries, as every step has them."""
    kubernetes.set_security_context(task, run_as_user=10001, run_as_non_root=True)
    return task.set_retry(3, backoff_max_duration="86400s")


def one(**arguments) -> dsl.PipelineTask:
    return lasting(say(settings=SETTINGS, **arguments))


def test_nothing_is_wrong_with_a_careful_pipeline(faults):
    def trapped(word: str, gpus: str = "1", gpu_type: str = "nvidia.com/gpu", pool: dict = {"gpu": "a100"}):  # noqa: B006
        task = one(word=word)
        with dsl.ParallelFor(["a", "b"], parallelism=1) as item:
            inner = one(word=item).set_accelerator_type(gpu_type).set_accelerator_limit(gpus).after(task)
            inner.register_pipeline_channels([gpus, gpu_type])
            kubernetes.add_node_selector_json(inner, pool)
            kubernetes.add_toleration(inner, key="nvidia.com/gpu", operator="Exists")
            kubernetes.empty_dir_mount(inner, "shm", "/dev/shm", medium="Memory")
            kubernetes.empty_dir_mount(inner, "scratch", "/scratch")

    assert faults(trapped) == []


def test_a_number_as_resource(faults):
    def trapped(gpus: int = 1):
        one().set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(gpus)

    assert any("gpus must be a str, is NUMBER_INTEGER" in fault for fault in faults(trapped))


def test_an_empty_resource(faults):
    def trapped(memory: str = ""):
        one().set_memory_limit(memory)

    assert faults(trapped) == ["exec-say: resource parameter memory must not be empty"]


def test_a_resource_that_the_loop_around_does_not_hand_down(faults):
    def trapped(cpu: str = "1"):
        with dsl.ParallelFor(["a"]) as item:
            one(word=item).set_cpu_limit(cpu)

    (fault,) = faults(trapped)
    assert "pipelinechannel--cpu, which is no input of the group around it" in fault


def test_a_gpu_without_pool_toleration_and_shared_memory(faults):
    def trapped():
        one().set_accelerator_type("nvidia.com/gpu").set_accelerator_limit("1")

    assert [fault.partition(": ")[2].partition(":")[0] for fault in faults(trapped)] == [
        "asks for GPUs but names no node pool",
        "asks for GPUs but tolerates no taint of their nodes",
        "asks for GPUs but has the 64 MiB of shared memory that pods get",
        "asks for GPUs but would fill its root file system",
    ]


def test_a_selector_that_yaml_reads_as_a_bool(faults):
    def trapped(pool: dict = {"spot": True}):  # noqa: B006
        kubernetes.add_node_selector_json(one(), pool)

    assert faults(trapped) == ["exec-say: node selector spot must be a string, is True: the driver refuses it"]


def test_an_image_put_together_from_a_parameter(faults):
    def trapped(tag: str = "1"):
        one().set_container_image(f"registry/blip-python:{tag}")

    assert any("mixes text and a parameter" in fault for fault in faults(trapped))


@pytest.mark.parametrize("image", ["registry:5000/blip-python", "blip-python:latest"])
def test_an_image_without_a_tag_that_stays(faults, image):
    def trapped(image: str = image):
        one().set_container_image(image)

    assert faults(trapped) == [f"exec-say: image {image} needs a tag that stays, such as the revision"]


def test_a_parameter_in_a_variable(faults):
    def trapped(word: str):
        one().set_env_variable("WORD", f"{word}")

    assert faults(trapped) == [
        "exec-say: variable WORD holds a parameter, which would arrive as its placeholder: make it an input"
    ]


def test_a_secret_in_a_variable(faults):
    def trapped():
        one().set_env_variable("AWS_SECRET_ACCESS_KEY", "hunter2")

    (fault,) = faults(trapped)
    assert "AWS_SECRET_ACCESS_KEY would put a secret into the file" in fault
    assert "hunter2" not in fault


def test_packages_installed_at_the_start(faults):
    def trapped():
        lasting(greedy(settings=SETTINGS))

    assert any("installs packages when it starts" in fault for fault in faults(trapped))


def test_a_container_component(faults):
    def trapped():
        lasting(contained(settings=SETTINGS))

    assert any("is a container component" in fault for fault in faults(trapped))


def test_a_cached_step_without_the_settings_of_the_plan(faults):
    def trapped():
        lasting(careless())

    (fault,) = faults(trapped)
    assert fault.startswith("root.careless: is cached and takes no `settings` of the plan")


def test_a_step_that_is_not_cached_needs_no_settings(faults):
    def trapped():
        lasting(careless()).set_caching_options(False)

    assert faults(trapped) == []


def test_numbers_in_a_mapping(faults):
    def trapped():
        lasting(mapped(settings=SETTINGS, sizes={"batch": 32}))

    (fault,) = faults(trapped)
    assert "input sizes is STRUCT, in which integers become floats" in fault


def test_none_as_default(faults):
    def trapped(word: str = None):  # noqa: RUF013
        one(word=word)

    assert any("parameter word is None by default" in fault for fault in faults(trapped))


def test_a_text_put_together_in_the_pipeline(faults):
    def trapped(root: str):
        with dsl.ParallelFor(["a"]) as item:
            one(word=f"{root}/{item}")

    assert any("word is put together in the pipeline" in fault for fault in faults(trapped))


def test_a_step_that_is_not_cached(faults):
    def trapped():
        written = lasting(write(settings=SETTINGS)).set_caching_options(False)
        lasting(read(settings=SETTINGS, text=written.outputs["text"]))

    assert faults(trapped) == ["root.write: is not cached, so that all that takes its artifacts runs again each time"]


def test_a_nested_pipeline_that_gives_away_what_is_not_cached(faults):
    @dsl.pipeline(name="inner")
    def inner() -> dsl.Dataset:
        return lasting(write(settings=SETTINGS)).set_caching_options(False).outputs["text"]  # pyright: ignore[reportReturnType]

    def trapped():
        lasting(read(settings=SETTINGS, text=inner().output))

    assert faults(trapped) == [
        "comp-inner.write: is not cached, so that all that takes its artifacts runs again each time"
    ]


def test_a_step_need_not_be_cached_where_only_its_parameters_are_taken(faults):
    def trapped():
        one(word=one().set_caching_options(False).output)

    assert faults(trapped) == []


def test_a_step_that_is_not_retried(faults):
    def trapped():
        one().set_retry(0)

    assert faults(trapped) == ["root.say: is not retried when its node gets lost: set_retry"]


@pytest.mark.parametrize("window", ["1800s", "86399s", None])
def test_a_retry_window_shorter_than_a_step(faults, window):
    def trapped():
        one().set_retry(3, "60s", 2.0, window)

    (fault,) = faults(trapped)
    assert f"root.say: is tried again only within {window or '3600s'} of its first start" in fault


@pytest.mark.parametrize(
    "context", [{}, {"run_as_non_root": True}, {"run_as_user": 10001}, {"run_as_user": 0, "run_as_non_root": True}]
)
def test_a_step_whose_pod_the_namespace_refuses(faults, context):
    def trapped():
        task = say(settings=SETTINGS).set_retry(3, backoff_max_duration="86400s")
        if context:
            kubernetes.set_security_context(task, **context)

    (fault,) = faults(trapped)
    assert fault.startswith("exec-say: names no user other than root")


def test_an_exit_handler(faults):
    def trapped():
        with dsl.ExitHandler(one()):
            one()

    assert any("is an exit handler" in fault for fault in faults(trapped))


def test_a_loop_over_too_many_items(faults):
    def trapped():
        with dsl.ParallelFor([str(i) for i in range(257)]) as item:
            one(word=item)

    assert faults(trapped) == ["root.for-loop-2: loops over 257 items: at least 1, at most 256"]


def test_a_loop_in_a_condition_in_a_loop(faults):
    def trapped(again: bool = False):
        with dsl.ParallelFor(["a"]), dsl.If(again == True), dsl.ParallelFor(["b"]) as item:  # noqa: E712
            one(word=item)

    assert any("holds another loop" in fault for fault in faults(trapped))


def test_what_is_too_large_for_the_cluster(faults, tmp_path, monkeypatch):
    def trapped():
        one()

    assert faults(trapped) == []
    monkeypatch.setattr(lint, "MAX_PIPELINE_BYTES", 1000)
    monkeypatch.setattr(lint, "MAX_SOURCE_BYTES", 100)
    found = lint.faults((tmp_path / "trapped.yaml").read_text(encoding="utf-8"))
    assert len(found) == 2
    assert all("belongs in the library" in fault or "bytes long" in fault for fault in found)
