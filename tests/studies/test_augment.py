import re

import pytest
import torch
from torch.nn.functional import pad

from galvanic.studies.augment import Augmentation, Crop, Cutout, Flip, augment

IMAGES = torch.arange(1.0, 6 * 2 * 5 * 7 + 1).view(6, 2, 5, 7)  # no zero and no number twice: a pixel tells where it came from
EVERY = [Crop(padding=2), Flip(), Cutout(size=3)]
every_augmentation = pytest.mark.parametrize("augmentation", EVERY, ids=lambda a: type(a).__name__)


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def windows(image: torch.Tensor, padding: int) -> list[torch.Tensor]:
    """Every window of the old size in the padded image, by a plain loop."""
    _, height, width = image.shape
    padded = pad(image, [padding] * 4)
    shifts = range(2 * padding + 1)
    return [padded[:, top : top + height, left : left + width] for top in shifts for left in shifts]


@every_augmentation
def test_one_seed_gives_the_same_bits_and_another_others(augmentation):
    batch = IMAGES.repeat(5, 1, 1, 1)
    first = augmentation(batch, seeded())
    assert torch.equal(first, augmentation(batch, seeded()))
    assert not torch.equal(first, augmentation(batch, seeded(1)))


@every_augmentation
def test_without_a_generator_the_global_stream_is_drawn_from(augmentation):
    batch = IMAGES.repeat(5, 1, 1, 1)
    torch.manual_seed(3)
    first, second = augmentation(batch), augmentation(batch)
    torch.manual_seed(3)
    assert torch.equal(first, augmentation(batch))
    assert not torch.equal(first, second)


@every_augmentation
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int64])
def test_dtype_and_shape_are_kept_and_the_choice_does_not_depend_on_them(augmentation, dtype):
    batch = (IMAGES % 100 + 1).to(dtype)
    out = augmentation(batch, seeded())
    assert (out.dtype, out.shape) == (dtype, batch.shape)
    assert torch.equal(out.double(), augmentation(batch.double(), seeded()))


@every_augmentation
def test_the_device_is_kept_and_the_generator_may_be_elsewhere(augmentation):
    assert augmentation(IMAGES.to("meta"), seeded()).device.type == "meta"


@every_augmentation
@pytest.mark.parametrize("n", [0, 1])
def test_a_batch_may_be_empty(augmentation, n):
    assert augmentation(IMAGES[:n], seeded()).shape == (n, 2, 5, 7)


@every_augmentation
def test_the_images_given_are_left_as_they_are(augmentation):
    batch = IMAGES.clone()
    augmentation(batch, seeded()).zero_()
    assert torch.equal(batch, IMAGES)


@every_augmentation
def test_images_in_any_memory_layout_are_taken(augmentation):
    last = IMAGES.contiguous(memory_format=torch.channels_last)
    assert torch.equal(augmentation(last, seeded()), augmentation(IMAGES, seeded()))


@every_augmentation
def test_not_a_number_stays_in_its_image(augmentation):
    broken = IMAGES.clone()
    broken[2] = torch.nan
    out = augmentation(broken, seeded())
    whole = torch.arange(6) != 2
    assert torch.equal(out[whole], augmentation(IMAGES, seeded())[whole])


@every_augmentation
def test_a_gradient_reaches_each_pixel_that_is_still_seen_once(augmentation):
    batch = IMAGES.clone().requires_grad_()
    out = augmentation(batch, seeded())
    out.sum().backward()
    assert torch.equal(batch.grad != 0, torch.isin(IMAGES, out))
    assert batch.grad.max() == 1


def test_a_crop_without_padding_is_the_identity():
    assert torch.equal(Crop(padding=0)(IMAGES, seeded()), IMAGES)


@pytest.mark.parametrize("padding", [1, 4, 9])
def test_each_crop_is_a_window_of_the_padded_image(padding):
    for image, out in zip(IMAGES, Crop(padding=padding)(IMAGES, seeded()), strict=True):
        assert any(torch.equal(out, window) for window in windows(image, padding))


def test_every_shift_is_as_likely():
    n, found = 9000, [window.flatten() for window in windows(IMAGES[0], 1)]
    crops = Crop(padding=1)(IMAGES[:1].expand(n, -1, -1, -1), seeded()).flatten(1)
    counts = torch.stack([(crops == window).all(1).sum() for window in found])
    assert counts.sum() == n
    assert ((counts - n / 9).abs() < 5 * (n / 9 * 8 / 9) ** 0.5).all()


def test_half_of_the_images_are_flipped():
    n = 10_000
    batch = IMAGES[:1].expand(n, -1, -1, -1)
    out = Flip()(batch, seeded())
    flipped = (out == IMAGES[0].flip(2)).flatten(1).all(1)
    assert (flipped | (out == batch).flatten(1).all(1)).all()
    assert abs(flipped.sum().item() - n / 2) < 5 * (n / 4) ** 0.5


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_hole_is_a_square_around_some_pixel_cut_off_at_the_border(size):
    def hole(row: int, column: int) -> torch.Tensor:
        top, left = row - size // 2, column - size // 2
        rows, columns = range(max(top, 0), min(top + size, 5)), range(max(left, 0), min(left + size, 7))
        return torch.tensor([[r in rows and c in columns for c in range(7)] for r in range(5)])

    n, holes = 7000, torch.stack([hole(row, column) for row in range(5) for column in range(7)])
    batch = IMAGES[:1].expand(n, -1, -1, -1)
    out = Cutout(size=size)(batch, seeded())
    gone = out == 0
    assert torch.equal(out, batch.masked_fill(gone, 0))
    assert torch.equal(gone[:, 0], gone[:, 1])  # through all channels
    which = (gone[:, :1] == holes).flatten(2).all(2)  # (n, 35)
    assert (which.sum(1) >= 1).all()
    kinds, n_alike = holes.flatten(1).unique(dim=0, return_counts=True)
    counts = (gone[:, 0].flatten(1)[:, None] == kinds).all(2).sum(0)
    expected = n * n_alike / 35
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()


def test_augmentations_follow_each_other():
    chained = seeded()
    expected = Flip()(Crop(padding=2)(IMAGES, chained), chained)
    assert torch.equal(augment(IMAGES, (Crop(padding=2), Flip()), seeded()), expected)
    assert augment(IMAGES, ()) is IMAGES


@pytest.mark.parametrize("shape", [(5, 7), (2, 5, 7), (1, 6, 2, 5, 7)])
def test_what_is_no_batch_of_images_is_refused(shape):
    with pytest.raises(ValueError, match=re.escape(f"images have shape {shape}; expected (n, channels, height, width)")):
        augment(torch.zeros(shape), (Flip(),))


@pytest.mark.parametrize(("kind", "field", "value"), [(Crop, "padding", -1), (Crop, "padding", 1.5), (Cutout, "size", 0)])
def test_what_is_no_width_is_refused(kind, field, value):
    with pytest.raises(ValueError, match=f"{field}.*{value}"):
        kind(**{field: value})


def test_an_augmentation_is_a_value():
    assert Crop() == Crop(padding=4)
    assert Crop() != Crop(padding=3)
    with pytest.raises(TypeError, match="abstract"):
        Augmentation()
