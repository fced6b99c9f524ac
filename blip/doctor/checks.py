"""All checks by name."""

from collections.abc import Callable, Iterator, Sequence

from blip.config import ConfigError
from blip.doctor import machine, services
from blip.doctor.finding import Finding


def checks(store: str) -> dict[str, Callable[[], Iterator[Finding]]]:
    """Returns the checks by name, in the order in which they are told."""
    return {
        "python": machine.check_python,
        "packages": machine.check_packages,
        "torch": machine.check_torch,
        "java": machine.check_java,
        "memory": machine.check_memory,
        "disks": lambda: machine.check_disks(store),
        "shm": machine.check_shm,
        "store": lambda: services.check_store(store),
        "weights": services.check_weights,
        "mlflow": services.check_tracking,
        "kfp": services.check_kubeflow,
    }


CHECK_NAMES = tuple(checks(""))


def examine(store: str, names: Sequence[str] = ()) -> Iterator[Finding]:
    """Yields what the checks of these names find, by default of all. Raises ConfigError for an unknown name."""
    known = checks(store)
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no check {name!r}; choices: {', '.join(known)}")
    for name in names or known:
        yield from known[name]()
