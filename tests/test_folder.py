"""Image folders: what is read, and what is refused."""

import shutil

import numpy as np
import pytest
from PIL import Image

from famr_jax.data import load


def write_folder(root, *, splits=("train", "val"), classes=("b", "a"), n=2, mode="RGB"):
    """A folder of distinct PNGs; returns {split/class/file: pixels}."""
    generator = np.random.default_rng(0)
    written = {}
    for split in splits:
        for name in classes:
            for i in range(n):
                file = root / split / name / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                shape = (3, 4, 3) if mode == "RGB" else (3, 4)
                written[f"{split}/{name}/{i}"] = generator.integers(0, 256, shape, np.uint8)
                Image.fromarray(written[f"{split}/{name}/{i}"]).save(file)
    return written


def test_folder_round_trip(tmp_path):
    written = write_folder(tmp_path)
    (tmp_path / "train" / "a" / ".hidden").write_text("not an image")
    (tmp_path / "train" / ".DS_Store").write_text("nor this")
    folder = load(f"folder:{tmp_path}")
    assert (folder.name, folder.mirrored) == (f"folder:{tmp_path.name}", True)
    assert (folder.class_names, folder.image_shape) == (("a", "b"), (3, 4, 3))
    for split, name in ((folder.train, "train"), (folder.test, "val")):
        keys = ("a/0", "a/1", "b/0", "b/1")
        np.testing.assert_array_equal(split.x, [written[f"{name}/{key}"] for key in keys])
        np.testing.assert_array_equal(split.labels, [0, 0, 1, 1])
    assert folder.fingerprint == load(f"folder:{tmp_path}").fingerprint


def test_folder_prefers_test_over_validation(tmp_path):
    written = write_folder(tmp_path, splits=("train", "validation", "test"))
    test = load(f"folder:{tmp_path}").test
    np.testing.assert_array_equal(test.x[0], written["test/a/0"])


def test_folder_stays_grey_only_if_every_image_is(tmp_path):
    written = write_folder(tmp_path, mode="L")
    np.testing.assert_array_equal(
        load(f"folder:{tmp_path}").train.x[0, :, :, 0], written["train/a/0"]
    )
    red = np.zeros((3, 4, 3), np.uint8)
    red[..., 0] = 200
    Image.fromarray(red).save(tmp_path / "val" / "b" / "1.png")
    mixed = load(f"folder:{tmp_path}")
    np.testing.assert_array_equal(
        mixed.train.x[0], np.repeat(written["train/a/0"][..., None], 3, axis=-1)
    )
    np.testing.assert_array_equal(mixed.test.x[-1], red)


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK", "LA", "1"])
def test_folder_turns_other_modes_into_rgb(tmp_path, mode):
    write_folder(tmp_path)
    form = "tiff" if mode == "CMYK" else "png"
    picture = Image.new("RGB", (4, 3), (255, 255, 255)).convert(mode)
    options = {"transparency": b"\x00\x80"} if mode == "P" else {}
    picture.save(tmp_path / "train" / "a" / "0.png", form, **options)
    np.testing.assert_array_equal(load(f"folder:{tmp_path}").train.x[0], 255)


def test_folder_reads_the_kept_classes_and_their_names_only(tmp_path):
    write_folder(tmp_path, classes=("a", "b", "c"))
    (tmp_path / "train" / "c" / "0.png").write_text("would not decode")
    (tmp_path / "classes.txt").write_text("b\tbird, any\na\tape\nz\tzebra\n\n")
    folder = load(f"folder:{tmp_path}", classes=2)
    assert folder.class_names == ("ape", "bird, any")
    assert len(folder.train) == 4


def replace_image(root, size=(9, 9), mode="RGB"):
    Image.new(mode, size).save(root / "val" / "b" / "1.png")


def truncate(root):
    file = root / "train" / "a" / "1.png"
    file.write_bytes(file.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (shutil.rmtree, "`folder:PATH` must be a directory, got"),
        (lambda root: shutil.rmtree(root / "val"), r"train and one of test, val.*\['train'\]"),
        (lambda root: shutil.rmtree(root / "train"), r"train and one of test, val.*\['val'\]"),
        (lambda root: [f.unlink() for f in root.glob("train/a/*")], "train/a must hold images"),
        (lambda root: [shutil.rmtree(d) for d in root.glob("*/a")], "two classes, got ..b.."),
        (lambda root: [shutil.rmtree(d) for d in root.glob("*/?")], "two classes, got .."),
        (lambda root: shutil.rmtree(root / "val/a"), "the same classes, only one has ..a.."),
        (truncate, "train/a/1.png` must be a readable 8-bit image, got"),
        (lambda root: (root / "val/b/notes.txt").write_text("x"), "val/b/notes.txt` must be a"),
        (lambda root: (root / "val/b/sub").mkdir(), "val/b/sub` must be a readable"),
        (lambda root: (root / "val/x.png").write_text("x"), "directory a class, got .*val/x.png"),
        (replace_image, "got 3x4 in .*train/a/0.png` and 9x9 in .*val/b/1.png"),
        (lambda root: replace_image(root, (4, 3), "I;16"), "mode I;16 is not 8-bit"),
        (lambda root: (root / "classes.txt").write_text("a\tape\n"), "every class, .* ..b.."),
        (lambda root: (root / "classes.txt").write_text("a ape\n"), "tab, name; got 'a ape'"),
    ],
)
def test_folder_refuses(tmp_path, break_it, message):
    write_folder(tmp_path / "set")
    break_it(tmp_path / "set")
    with pytest.raises(ValueError, match=message):
        load(f"folder:{tmp_path / 'set'}")


def test_folder_refuses_too_many_classes(tmp_path):
    write_folder(tmp_path)
    with pytest.raises(ValueError, match="`classes` must be an integer from 2 to 2, got 3"):
        load(f"folder:{tmp_path}", classes=3)
