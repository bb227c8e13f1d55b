"""Image folders: what is read, and what is refused."""

import os
import shutil

import numpy as np
import pytest
from PIL import ExifTags, Image

from famr_jax import forget
from famr_jax.cli.flags import BenchFlags
from famr_jax.cli.opening import open_bench
from famr_jax.data import from_arrays, load


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


def test_classes_that_are_numbers_sort_as_numbers_and_files_are_known(tmp_path):
    names = [str(number) for number in range(12)]
    write_folder(tmp_path, classes=names, n=1)
    folder = load(f"folder:{tmp_path}")
    assert folder.class_names == tuple(names)
    assert folder.files == tuple(f"{name}/0.png" for name in names)
    named = {"num_classes": 12, "class_names": folder.class_names, "files": folder.files}
    (tmp_path / "list.txt").write_text("train/11/0.png\n")
    for spec, row in (("class:3", 3), ("class:11", 11), (f"file:{tmp_path / 'list.txt'}", 11)):
        mask = forget.parse(spec, folder.train, **named).mask
        assert np.flatnonzero(mask).tolist() == [row]


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


@pytest.mark.parametrize("form", ["png", "jpeg", "webp", "mpo", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_folder_turns_pictures_upright(tmp_path, form, orientation):
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24], upright[:16, 24:], upright[16:, :24] = (255, 0, 0), (0, 255, 0), 255
    # How a camera stores it: rows and columns swapped from 5 on, then turned over.
    stored = upright.swapaxes(0, 1) if orientation >= 5 else upright
    stored = stored[::-1] if orientation in (3, 4, 6, 7) else stored
    stored = stored[:, ::-1] if orientation in (2, 3, 7, 8) else stored
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / place).mkdir(parents=True)
        picture = Image.fromarray(stored)
        picture.save(tmp_path / place / f"0.{form}", form, exif=exif)
    for stream in (False, True):
        folder = load(f"folder:{tmp_path}", stream=stream)
        assert folder.image_shape == (32, 48, 3)
        shown = folder.train.pixels([0])[0].astype(int)[8::16, 12::24]
        np.testing.assert_allclose(shown, upright[8::16, 12::24], atol=8)


def test_a_damaged_orientation_says_nothing(tmp_path):
    written = write_folder(tmp_path)
    picture = Image.fromarray(written["train/a/0"])
    picture.save(tmp_path / "train" / "a" / "0.png", exif=b"Exif\0\0torn to pieces")
    np.testing.assert_array_equal(load(f"folder:{tmp_path}").train.x[0], written["train/a/0"])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_what_is_transparent_is_white(tmp_path, mode):
    write_folder(tmp_path)
    picture, options = Image.new("RGB", (4, 3), (102, 102, 102)), {}
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.linear_gradient("L").resize((4, 3)))
        alpha = np.asarray(picture)[..., 3:] / 255
        picture = picture.convert(mode)
    else:
        picture, alpha = picture.convert(mode), np.zeros((3, 4, 1))
        options = {
            "transparency": {"P": picture.getpixel((0, 0)), "L": 102, "RGB": (102,) * 3}[mode]
        }
    picture.save(tmp_path / "train" / "a" / "0.png", **options)
    [shown] = np.unique(picture.convert("RGB"))
    wanted = np.broadcast_to(255 + alpha * (int(shown) - 255), (3, 4, 3))
    np.testing.assert_allclose(load(f"folder:{tmp_path}").train.x[0], wanted, atol=1)


def test_what_is_opaque_keeps_its_bits(tmp_path):
    written = write_folder(tmp_path)
    picture = Image.fromarray(written["train/a/0"])
    picture.putalpha(255)
    picture.save(tmp_path / "train" / "a" / "0.png")
    np.testing.assert_array_equal(load(f"folder:{tmp_path}").train.x[0], written["train/a/0"])


@pytest.mark.parametrize(
    "names",
    [
        tuple(str(i) for i in range(12)),
        ("1", "2", "10", "11"),
        ("class_2", "class_10", "class_10b"),
        ("a", "a-b", "a1", "b"),
        ("n01443537", "n01629819", "n12267677"),
    ],
)
def test_classes_are_numbered_as_people_count(tmp_path, names):
    written = write_folder(tmp_path, classes=names, n=1)
    folder = load(f"folder:{tmp_path}")
    assert folder.class_names == names
    for label, name in enumerate(names):
        [x] = folder.train.x[folder.train.labels == label]
        np.testing.assert_array_equal(x, written[f"train/{name}/0"])


@pytest.mark.parametrize("test", ["none", "empty", "empty classes", "files", "one directory"])
@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_test_split_without_labels_does_not_count(tmp_path, name, test):
    written = write_folder(tmp_path, splits=("train", name))
    if test != "none":
        place = tmp_path / "test" / ("images" if test == "one directory" else "")
        place.mkdir(parents=True)
        if test == "empty classes":
            (place / "a").mkdir()
            (place / "b").mkdir()
        elif test != "empty":
            shutil.copy(tmp_path / "train/a/0.png", place)
    held_out = load(f"folder:{tmp_path}").test
    np.testing.assert_array_equal(held_out.x[0], written[f"{name}/a/0"])


def test_class_names_may_begin_with_a_bom_and_must_be_utf8(tmp_path):
    write_folder(tmp_path)
    lines = "a\tcafé\nb\tbar\n"
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "classes.txt").write_text(lines, encoding=encoding)
        assert load(f"folder:{tmp_path}").class_names == ("café", "bar")
    (tmp_path / "classes.txt").write_text(lines, encoding="latin-1")
    with pytest.raises(ValueError, match=r"classes.txt must be readable text in UTF-8, got"):
        load(f"folder:{tmp_path}")


def test_names_that_are_not_utf8_are_refused(tmp_path):
    latin = os.fsdecode("café".encode("latin-1"))
    write_folder(tmp_path / "set", classes=("a", latin))
    with pytest.raises(ValueError, match=r"classes in .*train must be UTF-8, got .caf.udce9"):
        load(f"folder:{tmp_path / 'set'}")
    write_folder(tmp_path / latin)
    with pytest.raises(ValueError, match=r"folder's name must be UTF-8, got 'folder:caf.udce9'"):
        load(f"folder:{tmp_path / latin}")
    x, labels = np.zeros((2, 2, 2), np.uint8), np.arange(2)
    with pytest.raises(ValueError, match="a name of a data set or class must be UTF-8"):
        from_arrays(x, labels, test=(x, labels), class_names=("a", latin))
    write_folder(tmp_path / "ä", classes=("a", "café"))
    assert load(f"folder:{tmp_path / 'ä'}").class_names == ("a", "café")


def test_a_class_is_forgotten_by_its_name(tmp_path):
    write_folder(tmp_path, classes=("1", "2", "10", "11"))
    flags = BenchFlags(dataset=f"folder:{tmp_path}", model="logistic")
    bench = open_bench(flags)
    for spec, label in (("name:2", 1), ("class:1", 0), ("class:10", 2)):
        (gone,) = bench.forget_sets([spec])
        assert (gone.spec, gone.kind, gone.classes) == (spec, "class", (label,))
        np.testing.assert_array_equal(gone.mask, bench.dataset.train.labels == label)
    with pytest.raises(ValueError, match="must be one of 1, 10, 11, 2, got '3'"):
        bench.forget_sets(["name:3"])


def replace_image(root, size=(9, 9), mode="RGB"):
    Image.new(mode, size).save(root / "val" / "b" / "1.png")


def truncate(root):
    file = root / "train" / "a" / "1.png"
    file.write_bytes(file.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (shutil.rmtree, "`folder:PATH` must be a directory, got"),
        (
            lambda root: shutil.rmtree(root / "val"),
            r"train and one of test, val.*\['train'\]",
        ),
        (
            lambda root: shutil.rmtree(root / "train"),
            r"train and one of test, val.*\['val'\]",
        ),
        (lambda root: [f.unlink() for f in root.glob("train/a/*")], "train/a must hold images"),
        (lambda root: [shutil.rmtree(d) for d in root.glob("*/a")], "two classes, got ..b.."),
        (lambda root: [shutil.rmtree(d) for d in root.glob("*/?")], "two classes, got .."),
        (lambda root: shutil.rmtree(root / "val/a"), "the same classes, only one has ..a.."),
        (truncate, "train/a/1.png` must be a readable 8-bit image, got"),
        (lambda root: (root / "val/b/notes").write_text("x"), "val/b/notes` must be a readable"),
        (lambda root: (root / "val/b/2.JPG").write_text("x"), r"val/b/2\.JPG` must be a readable"),
        (lambda root: (root / "val/b/sub").mkdir(), "val/b/sub` must be a readable"),
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


@pytest.mark.parametrize("stream", [False, True])
def test_a_stray_file_is_skipped_and_named(tmp_path, stream):
    write_folder(tmp_path)
    clean = load(f"folder:{tmp_path}", stream=stream)
    (tmp_path / "train" / "b" / "Thumbs.db").write_text("not an image")
    (tmp_path / "val" / "labels.csv").write_text("nor this")
    with pytest.warns(
        UserWarning, match=r"skipped what is no image: .*b/Thumbs.db, val/labels.csv\."
    ):
        folder = load(f"folder:{tmp_path}", stream=stream)
    assert folder.fingerprint == clean.fingerprint
    assert folder.files == clean.files


def test_a_folder_without_a_test_split_is_split_by_a_share_and_a_seed(tmp_path):
    written = write_folder(tmp_path, splits=("train",), n=10)
    folder = load(f"folder/0.3:{tmp_path}")
    assert folder.name == f"folder/0.3/0:{tmp_path.name}"
    for split, count in ((folder.train, 7), (folder.test, 3)):
        assert np.bincount(split.labels).tolist() == [count, count]
        assert np.all(np.diff(split.labels) >= 0)
    pixels = sorted(image.tobytes() for image in (*folder.train.x, *folder.test.x))
    assert pixels == sorted(image.tobytes() for image in written.values())
    for file, image in zip(folder.files, folder.train.x, strict=True):
        np.testing.assert_array_equal(image, written[f"train/{file.removesuffix('.png')}"])
    again, other = load(f"folder/0.3/0:{tmp_path}"), load(f"folder/0.3/1:{tmp_path}")
    assert folder.fingerprint == again.fingerprint != other.fingerprint

    (tmp_path / "train").rename(tmp_path / "all")
    classes = load(f"folder/.3:{tmp_path / 'all'}", stream=True)  # PATH/class/image
    np.testing.assert_array_equal(classes.test.pixels(), folder.test.x)
    (tmp_path / "all").rename(tmp_path / "train")
    (tmp_path / "test").mkdir()  # one without labels, as of a competition
    Image.new("RGB", (4, 3)).save(tmp_path / "test" / "0.png")
    assert load(f"folder/0.3:{tmp_path}").fingerprint == folder.fingerprint


def test_a_class_has_an_image_on_either_side(tmp_path):
    write_folder(tmp_path, splits=("train",), n=2)
    for share in ("0.01", "0.99"):
        folder = load(f"folder/{share}:{tmp_path}")
        assert (len(folder.train), len(folder.test)) == (2, 2)
    (tmp_path / "train" / "b" / "1.png").unlink()
    with pytest.raises(
        ValueError, match=r"class of .*train/b/0\.png must hold two images to be split, got 1"
    ):
        load(f"folder/0.5:{tmp_path}")


@pytest.mark.parametrize("kind", ["folder/0", "folder/1.0", "folder/0.0", "folder/x", "folder/.2/"])
def test_a_share_that_is_none_is_refused(tmp_path, kind):
    write_folder(tmp_path, splits=("train",))
    with pytest.raises(ValueError, match="must state a share between 0 and 1, and perhaps a seed"):
        load(f"{kind}:{tmp_path}")


def test_a_test_split_that_is_there_is_not_drawn(tmp_path):
    write_folder(tmp_path)
    with pytest.raises(ValueError, match="must have no test split to have one drawn, got val"):
        load(f"folder/0.2:{tmp_path}")
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(ValueError, match=r"folder/0\.2:PATH draws a fifth of each"):
        load(f"folder:{tmp_path}")
