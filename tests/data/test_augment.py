import numpy as np
import pytest
from PIL import Image

from blip.data.augment import OPERATIONS, apply_operation, random_augment

RAMP = np.arange(16, dtype=np.uint8).reshape(1, 16, 1) * 10 + np.arange(16, dtype=np.uint8).reshape(16, 1, 1)
IMAGE = Image.fromarray(np.broadcast_to(RAMP, (16, 16, 3)).copy())


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)[..., 0].astype(int)


def test_translation_moves_by_five_pixels_and_leaves_grey():
    moved = pixels(apply_operation(IMAGE, "translate_x", 1, 1.0))
    assert (moved[:, :11] == pixels(IMAGE)[:, 5:]).all()
    assert (moved[:, 11:] == 128).all()
    moved = pixels(apply_operation(IMAGE, "translate_y", -1, 1.0))
    assert (moved[5:] == pixels(IMAGE)[:11]).all()
    assert (moved[:5] == 128).all()


def test_shear_moves_rows_in_proportion():
    sheared = pixels(apply_operation(IMAGE, "shear_x", 1, 1.0))
    # Row y reads at x + 0.15 y, and a step of one column is worth 10.
    for y in (0, 5, 10):
        assert sheared[y, :12] == pytest.approx(pixels(IMAGE)[y, :12] + 1.5 * y, abs=1)


def test_rotation_is_by_fifteen_degrees_about_the_centre():
    rotated = pixels(apply_operation(IMAGE, "rotate", 1, 1.0))
    assert rotated[8, 8] == pixels(IMAGE)[8, 8]
    # Three columns right of the centre: (x, y) = (8 + 3 cos 15, 8 - 3 sin 15), worth 10 x + y.
    assert rotated[8, 11] == pytest.approx(10 * 10.898 + 7.224, abs=1)
    assert rotated[0, 0] == 128


def test_colour_operations():
    assert pixels(apply_operation(IMAGE, "brightness", 1, 1.45))[0, 4] == 58
    assert pixels(apply_operation(IMAGE, "brightness", -1, 0.55))[0, 4] == 22
    contrast = pixels(apply_operation(IMAGE, "autocontrast", 1, 1.0))
    assert (contrast[0, 0], contrast[15, 15]) == (0, 255)
    assert contrast[0, 10] == int(100 * 255 / 165)


def test_sharpness_is_an_extrapolation_from_the_smoothed_image():
    dot = Image.fromarray(np.pad(np.full((1, 1, 3), 130, np.uint8), ((2, 2), (2, 2), (0, 0))))
    # The smoothed dot is 130 * 5 / 13 = 50; its neighbours are 10, and fall below 0.
    assert pixels(apply_operation(dot, "sharpness", 1, 1.45))[2].tolist() == [0, 0, 50 + int(1.45 * 80), 0, 0]
    assert pixels(apply_operation(dot, "sharpness", -1, 0.5))[2].tolist() == [0, 5, 90, 5, 0]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_reference_leaves_brightness_and_sharpness_alone(operation):
    changed = apply_operation(IMAGE, operation, 1, 1.0)
    assert changed.size == IMAGE.size
    assert (changed.tobytes() == IMAGE.tobytes()) == (operation in ("identity", "brightness", "sharpness"))


def test_the_corrected_mode_uses_all_operations_and_the_reference_fewer():
    def results(mode):
        return {random_augment(IMAGE, np.random.default_rng(seed), mode).tobytes() for seed in range(60)}

    assert len(results("corrected")) > len(results("reference")) > 10
    assert results("corrected") == results("corrected")


def test_an_image_stays_as_it_is_when_no_draw_applies():
    same = sum(random_augment(IMAGE, np.random.default_rng(s), "corrected") is IMAGE for s in range(400)) / 400
    # Each of two draws applies with 1/2, and one operation of ten is the identity: (1/2 + 1/20)^2.
    assert same == pytest.approx(0.3025, abs=0.07)
