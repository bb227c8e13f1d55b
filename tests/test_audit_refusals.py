"""Arrays that are no model's outputs on these rows, each refused in one sentence."""

import re
import zipfile

import numpy as np
import pytest

from famr_jax import audit

N, C = 12, 3
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(N, C))
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
GOOD = {
    "logits": LOGITS,
    "labels": np.arange(N) % C,
    "split": np.array(["train"] * 8 + ["test"] * 4),
    "forget": np.arange(N) < 2,
    "ids": np.array([f"image {i}" for i in range(N)]),
    "features": RNG.normal(size=(N, 4)),
}


def at(array, row, value):
    """A copy with another value in a row."""
    array = array.copy()
    array[row] = value
    return array


def other(**changes):
    """Arrays of another model of the same rows; None takes an array away."""
    found = GOOD | {"logits": LOGITS + 1e-3} | changes
    return {key: array for key, array in found.items() if array is not None}


def test_good_arrays_pass_whatever_their_dtypes_are():
    before = other(
        labels=GOOD["labels"].astype(np.int8),
        logits=LOGITS.astype(np.float16),
        split=GOOD["split"].astype(bytes),
        unknown=np.zeros(3),
    )
    after = other(logits=np.log(SOFTMAX), labels=GOOD["labels"].astype(np.uint64))
    assert audit.arrays(before, after).verdict == "not resolved"


ALONE = [
    ({"logits": [[1.0, 2.0], [3.0]]}, "`logits` must be an array, got setting an array element"),
    ({"labels": None}, "`before` must hold logits, labels, split, forget, got logits, split, "),
    ({"logits": LOGITS.astype(object)}, "`logits` must be a plain array, got one of Python obj"),
    ({"split": GOOD["split"].astype(object)}, "`split` must be a plain array, got one of Python"),
    ({"logits": LOGITS[:, :1]}, "`logits` must be [n, num_classes] of one example and two classes"),
    ({"logits": LOGITS[:, 0]}, "two classes at least, got [12]"),
    ({"logits": LOGITS[:0]}, "two classes at least, got [0, 3]"),
    ({"logits": LOGITS.astype(int)}, "`logits` must be float16, float32 or float64, got int64"),
    ({"logits": LOGITS.astype(complex)}, "must be float16, float32 or float64, got complex128"),
    ({"logits": SOFTMAX}, "must be logits, or logarithms of probabilities, got probabilities"),
    ({"logits": SOFTMAX.astype(np.float16)}, "got probabilities: rows that sum to 1"),
    ({"logits": at(LOGITS, 3, np.nan)}, "`logits` must be finite, got NaN in 1 of 12 rows."),
    (
        {"logits": at(LOGITS.astype(np.float16), 3, np.inf)},
        "1 of 12 rows: float16 ends at 65504.",
    ),
    ({"logits": at(LOGITS, 3, 1e300)}, "got infinity in 1 of 12 rows: float32 ends at 3e38."),
    ({"logits": at(LOGITS, 3, -np.inf)}, "in 1 of 12 rows: of a class that is masked give -1e4."),
    ({"features": at(GOOD["features"], 0, np.nan)}, "`features` must be finite, got NaN in 1"),
    ({"features": GOOD["features"][:, 0]}, "`features` must be [n, dim] with the 12 rows"),
    ({"labels": GOOD["labels"][:9]}, "`labels` must be [n] with the 12 rows of `logits`, got [9]"),
    ({"labels": np.eye(C)[GOOD["labels"]]}, "`labels` must be [n] with the 12 rows"),
    ({"forget": GOOD["forget"][:9]}, "`forget` must be [n] with the 12 rows"),
    ({"labels": GOOD["labels"] * 1.0}, "`labels` must be integers, a class each, got float64"),
    ({"labels": GOOD["labels"] + 1}, "`labels` must be classes of 3, 0 to 2, got 1 to 3."),
    ({"labels": GOOD["labels"] - 1}, "`labels` must be classes of 3, 0 to 2, got -1 to 1."),
    ({"split": np.array(["train"] * 8 + ["val"] * 4)}, "the words train and test, got train, val"),
    ({"split": np.arange(N) % 2}, "`split` must be the words train and test, got 0, 1."),
    ({"forget": GOOD["forget"] * 1}, "`forget` must be boolean, got an array of int64."),
    ({"forget": np.arange(N) > 9}, "`forget` must mark training rows alone, test images of a"),
    ({"forget": np.zeros(N, bool)}, "mark some training rows and leave some, got 0 of 8."),
    ({"forget": np.arange(N) < 8}, "mark some training rows and leave some, got 8 of 8."),
    ({"split": np.array(["test"] * N), "forget": np.zeros(N, bool)}, "leave some, got 0 of 0."),
    ({"ids": np.arange(N) // 2}, "`ids` must differ from row to row, got some of them twice."),
]


def refused(words, *given):
    with pytest.raises(ValueError, match=re.escape(words)) as told:
        audit.arrays(*given)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("changes", "words"), ALONE)
def test_arrays_that_are_wrong_alone_are_refused(changes, words):
    refused(words, other(**changes), GOOD)


def test_the_message_names_the_model_that_is_wrong():
    refused("`oracle` 0: `logits` must be finite", GOOD, other(), [other(logits=LOGITS * np.nan)])
    refused("`after` must hold logits", GOOD, {"a": LOGITS})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": at(GOOD["labels"], 1, 2)}, "`labels` must be those of `before`, row by row, "),
        ({"ids": GOOD["ids"][::-1]}, "`ids` must be those of `before`, row by row, got others"),
        ({"ids": None}, "`ids` must be in all models or in none, got them in `before` alone."),
        ({"split": at(GOOD["split"], 7, "test")}, "`split` must be those of `before`, row by row"),
        ({"forget": np.arange(N) < 3}, "`forget` must be those of `before`, row by row, got others "
         "in 1 of 12 rows."),
        ({key: array[:-1] for key, array in GOOD.items()},
         "`logits` must be [12, 3] of `before`, got [11, 3]."),
        ({"logits": np.pad(LOGITS, ((0, 0), (0, 1)))},
         "`logits` must be [12, 3] of `before`, got [12, 4]."),
    ],
)  # fmt: skip
def test_models_of_other_rows_are_refused(changes, words):
    refused(words, GOOD, other(**changes))
    refused(f"`oracle` 1: {words}", GOOD, other(), [other(logits=LOGITS + 1), other(**changes)])
    if "ids" in changes and changes["ids"] is None:
        refused("got them in `after` alone", other(ids=None), GOOD)


def test_an_oracle_that_is_another_of_the_models_is_refused():
    words = "must be a model of its own, retrained without the forget set, got the logits of"
    one = other(logits=LOGITS + 1)
    refused(f"`oracle` 0 {words} `before`.", GOOD, other(), [GOOD])
    refused(f"`oracle` 1 {words} `after`.", GOOD, other(), [one, other()])
    refused(f"`oracle` 1 {words} `oracle` 0.", GOOD, other(), [one, one])
    assert audit.arrays(GOOD, GOOD, [one]).verdict == "not resolved"


def test_files_that_cannot_be_read_are_refused(tmp_path):
    good = tmp_path / "good [1].npz"
    np.savez_compressed(good, **GOOD)
    assert audit.arrays(good, str(good)).verdict == "not resolved"
    rule = "must be a .npz file of arrays, got"

    def file(name, write):
        write(tmp_path / name)
        return tmp_path / name

    whole = good.read_bytes()
    cases = {
        "no file": tmp_path / "none.npz",
        "another kind of file": file("a.npz", lambda p: p.write_text("not an archive")),
        "a file of one array": file("b.npy", lambda p: np.save(p, LOGITS)),
        "an array of Python objects: give it a dtype of numbers or of text": file(
            "c.npz", lambda p: np.savez(p, **GOOD | {"split": GOOD["split"].astype(object)})
        ),
        "labels": file("g.npz", lambda p: np.savez(p, labels=GOOD["labels"], x=np.array([{}]))),
        "": file("d.npz", lambda p: p.write_bytes(whole[: len(whole) // 2])),
        " ": file("e.npz", lambda p: p.write_bytes(b"")),
        "  ": tmp_path,
    }
    refused("g.npz must hold logits, labels, split, forget, got labels, x.", good, cases["labels"])
    del cases["labels"]
    for reason, path in cases.items():
        refused(f"`after` {path.name} {rule} {reason.strip()}", good, path)
    bad = bytearray(whole)
    with zipfile.ZipFile(good) as archive:
        start = archive.getinfo("logits.npy").header_offset
    bad[start + 60 : start + 100] = bytes(40)
    refused(rule, good, file("f.npz", lambda p: p.write_bytes(bad)))
