import pytest
from golden_files import FOLDER, Golden


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden(FOLDER)
