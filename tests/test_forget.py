"""Forget sets: what the words mean, what is refused, and that masks compose."""

import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from famr_jax import data, forget

LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 0, 3, 0])


def parse(spec, seed=0, attributes=None):
    return forget.parse(spec, LABELS, num_classes=5, seed=seed, attributes=attributes).mask


def test_by_class_takes_every_example_of_the_classes():
    mask = forget.by_class(LABELS, [3, 1], num_classes=5)
    assert np.flatnonzero(mask).tolist() == [1, 4, 8]


def test_by_index_takes_the_rows():
    assert forget.by_index([3, 0], size=4).tolist() == [True, False, False, True]
    assert forget.by_index(np.array([3, 0]), size=4).tolist() == [True, False, False, True]
    assert forget.by_index([], size=2).tolist() == [False, False]


def test_masks_compose():
    both = forget.by_class(LABELS, [0], num_classes=5) & ~forget.by_index([0, 3], size=10)
    assert np.flatnonzero(both | forget.by_index([1], size=10)).tolist() == [1, 6, 7, 9]


@given(st.floats(0.001, 0.999), st.integers(1, 300), st.integers(0, 5))
def test_at_random_takes_the_share_and_at_least_one(fraction, size, seed):
    mask = forget.at_random(fraction, size=size, seed=seed)
    assert mask.shape == (size,)
    assert mask.sum() == max(1, round(fraction * size))
    np.testing.assert_array_equal(mask, forget.at_random(fraction, size=size, seed=seed))


def test_at_random_differs_by_seed_and_is_uniform_over_rows():
    masks = [forget.at_random(0.3, size=20, seed=seed) for seed in range(400)]
    # Each row is Bernoulli(0.3) over 400 seeds: standard error 0.023; four of them.
    np.testing.assert_allclose(np.mean(masks, axis=0), 0.3, atol=0.092)


def test_duplicates_are_taken_along_and_nothing_else():
    groups = np.array([0, 1, 0, 2, 3, 3, 3, 1])
    mask = forget.by_index([0, 5], size=8)
    taken = forget.with_duplicates(mask, groups)
    assert np.flatnonzero(taken).tolist() == [0, 2, 4, 5, 6]
    np.testing.assert_array_equal(forget.with_duplicates(taken, groups), taken)
    assert np.flatnonzero(mask).tolist() == [0, 5]


@given(st.sets(st.integers(0, 3), min_size=1, max_size=3))
def test_parse_class_round_trip(classes):
    mask = parse("class:" + ",".join(map(str, classes)))
    np.testing.assert_array_equal(mask, forget.by_class(LABELS, list(classes), num_classes=5))


@given(rows=st.sets(st.integers(0, 9), min_size=1, max_size=9), space=st.sampled_from(" \n\t"))
def test_parse_index_round_trip(tmp_path_factory, rows, space):
    path = tmp_path_factory.getbasetemp() / "ids.txt"
    path.write_text(space.join(map(str, rows)) + "\n")
    np.testing.assert_array_equal(parse(f"index:{path}"), forget.by_index(list(rows), size=10))


@given(st.floats(0.05, 0.94), st.integers(0, 3))
def test_parse_random_round_trip(fraction, seed):
    mask = forget.at_random(fraction, size=10, seed=seed)
    np.testing.assert_array_equal(parse(f"random:{fraction!r}", seed=seed), mask)


def test_a_file_of_rows_may_begin_with_a_bom(tmp_path):
    (tmp_path / "ids.txt").write_text("2 0", encoding="utf-8-sig")
    mask = parse(f"index:{tmp_path / 'ids.txt'}")
    assert np.flatnonzero(mask).tolist() == [0, 2]


KINDS = st.sampled_from(["class:", "random:", "index:", "style:", ""])
WORDS = st.one_of(st.text(), st.text("0123456789.,-+e naif/", max_size=12))


@given(KINDS, WORDS)
@example("index:", "\0")
@example("index:", "\ud800")
@example("index:", "x" * 5000)
@example("class:", "9" * 5000)
@example("random:", "1e999")
def test_any_words_give_a_valid_mask_or_a_value_error(kind, words):
    try:
        mask = parse(kind + words)
    except ValueError as error:
        message = str(error)
    else:
        message = "`forget` is fine, got one"
        assert mask.shape == (10,)
        assert mask.dtype == bool
        assert 0 < mask.sum() < 10
    assert re.search("`(forget|fraction)` .* got ", message, re.DOTALL), message


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "must be class:3,5 or random"),
        ("label:3", "got 'label:3'"),
        ("class:", "class must list integers, got ''"),
        ("class:1,x", "class must list integers, got 'x'"),
        ("class:1.5", "class must list integers"),
        ("class:5", r"class must be in \[0, 5\), got 5"),
        ("class:-1", r"class must be in \[0, 5\), got -1"),
        ("class:1,2,1", "class must be named once, got 1 twice"),
        ("class:4", "must leave something on both sides, got 'class:4': 0 of 10"),
        ("class:0,1,2,3", "'class:0,1,2,3': 10 of 10"),
        ("random:half", "must give a share"),
        ("random:0", "between 0 and 1, both excluded, got 0.0"),
        ("random:1", "got 1.0"),
        ("random:-0.1", "got -0.1"),
        ("random:nan", "got nan"),
        ("random:0.99", "'random:0.99': 10 of 10"),
        ("index:/no/such/file", "file must be a readable text in UTF-8, got '/no/such/file'"),
        ("index:", "file must be a readable text in UTF-8"),
        ("file:names.txt", "file:FILE must be of a data set folder:PATH, got another one"),
    ],
)
def test_parse_refuses(spec, message):
    with pytest.raises(ValueError, match=message):
        parse(spec)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 of 10 examples"),
        (b"1 2\n\n3 x", r"ids\.txt, line 3: row numbers must be integers, got 'x'"),
        (b"1\n2\n1", r"line 3: rows must be named once, this one was in line 1, got '1'"),
        (b"3\n10", r"line 2: row numbers must be in \[0, 10\), got '10'"),
        (b"-1", r"line 1: row numbers must be in \[0, 10\), got '-1'"),
        (b"1.0", r"line 1: row numbers must be integers, got '1\.0'"),
        (
            b"a,b\n1,2",
            "line 1: of several columns one must be named index, row, id or idx, got 'a'",
        ),
        (b"index,label\n1,2\n3", "line 3: a line must have the 2 columns of its heading, got '3'"),
        (b"0 1 2 3 4 5 6 7 8 9", "10 of 10 examples"),
        (b"\xff\xfe\x00", "file must be a readable text in UTF-8"),
    ],
)
def test_parse_refuses_an_index_file(tmp_path, content, message):
    path = tmp_path / "ids.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        parse(f"index:{path}")


@pytest.mark.parametrize(
    "content",
    [
        b"3\n7\n",
        b"\xef\xbb\xbf3\r\n7\r\n",
        b"3,7\n",
        b"3; 7",
        b"index\n3\n7\n",
        b"\xef\xbb\xbfRow\r\n3\r\n7",
        b"label,index\r\n2,3\r\n0,7\r\n",
        b'"id","label"\n"3","cat"\n"7","dog"\n',
    ],
)
def test_an_index_file_may_be_a_text_or_a_column_of_a_csv(tmp_path, content):
    path = tmp_path / "ids.csv"
    path.write_bytes(content)
    assert np.flatnonzero(parse(f"index:{path}")).tolist() == [3, 7]


NAMES = ("cat", "dog", "red fox", "bird, any", "7")


@pytest.mark.parametrize(
    ("spec", "classes"),
    [
        ("class:cat", (0,)),
        ("class:dog,cat", (0, 1)),
        ("class:red fox, 0", (0, 2)),
        ("class:bird, any", (3,)),
        ("class:2", (2,)),
    ],
)
def test_classes_are_named_or_numbered(spec, classes):
    found = forget.parse(spec, LABELS, num_classes=5, class_names=NAMES)
    assert (found.classes, found.spec) == (classes, spec)


def test_a_number_that_is_a_name_is_that_name():
    names = tuple(map(str, range(1, 13)))
    found = forget.parse("class:3", np.arange(12), class_names=names)
    assert found.classes == (2,)


@pytest.mark.parametrize(
    ("spec", "names", "message"),
    [
        ("class:cta", NAMES, "must be a name or an index below 5, got 'cta'; did you mean cat?"),
        ("class:zebra", NAMES, "got 'zebra'; they are cat, dog, red fox, bird, any, 7."),
        ("class:x", tuple(map(str, range(100, 150))), "108, 109 or 40 others."),
        ("class:8", NAMES, r"class must be in \[0, 5\), got 8"),
        ("class:a", ("a", "b", "a"), r"class 'a' must be one of \[0, 2\], which share it"),
    ],
)
def test_unknown_classes_are_refused_with_those_there_are(spec, names, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        forget.parse(spec, LABELS, num_classes=len(names), class_names=names)


FILES = ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png", "cat/only.png")


@pytest.mark.parametrize(
    "content",
    [
        "cat/2.png\ndog/1.png\n",
        "\ufefftrain/cat/2.png\r\n\r\n/a/b/train/dog/1.png\r\n",
        "train\\cat\\2.png\ndog/1.png",
    ],
)
def test_files_of_a_folder_are_found_with_directories_before_them_or_not(tmp_path, content):
    path = tmp_path / "list.txt"
    path.write_text(content, encoding="utf-8", newline="")
    found = forget.parse(f"file:{path}", LABELS[:5], files=FILES)
    assert np.flatnonzero(found.mask).tolist() == [1, 2]
    assert (found.spec, found.kind) == ("file:list.txt", "sample")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("only.png\ncat/9.png", r"list\.txt, line 2: must be the file of a training image"),
        ("1.png", r"line 1: must be one file, cat/1\.png and dog/1\.png are both called so"),
        ("cat/1.png\ntrain/cat/1.png", "line 2: files must be named once, this one was in line 1"),
        ("", "0 of 5 examples"),
    ],
)
def test_files_that_are_not_there_are_refused(tmp_path, content, message):
    path = tmp_path / "list.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        forget.parse(f"file:{path}", LABELS[:5], files=FILES)


@pytest.mark.parametrize("rows", [[1.5], ["1"], [float("nan")], [None], [[0]]])
def test_rows_that_are_no_integers_are_refused(rows):
    with pytest.raises(ValueError, match="`forget`"):
        forget.by_index(rows, size=4)
    with pytest.raises(ValueError, match="`forget`"):
        forget.by_class(LABELS, rows, num_classes=5)


@pytest.mark.parametrize("mask", [np.zeros(3, bool), np.ones(3, bool), np.zeros(0, bool)])
def test_check_wants_something_on_both_sides(mask):
    with pytest.raises(ValueError, match="must leave something on both sides"):
        forget.check(mask)


STYLED = np.array(["none", "tint", "none", "tint", "none", "none", "tint", "none", "none", "none"])


def test_by_attribute_takes_every_example_that_has_the_value():
    assert np.flatnonzero(forget.by_attribute(STYLED, "tint")).tolist() == [1, 3, 6]
    assert np.flatnonzero(forget.by_attribute(STYLED == "tint", True)).tolist() == [1, 3, 6]
    with pytest.raises(ValueError, match="must be one of none, tint, got 'oil'"):
        forget.by_attribute(STYLED, "oil")


def test_parse_reads_the_attributes_that_are_given():
    mask = parse("style:tint", attributes={"style": STYLED})
    assert np.flatnonzero(mask).tolist() == [1, 3, 6]
    with pytest.raises(ValueError, match=r"or file:FILE, got 'style:tint'"):
        parse("style:tint")
    with pytest.raises(ValueError, match=r"or file:FILE or style:NAME, got 'look:tint'"):
        parse("look:tint", attributes={"style": STYLED})
    with pytest.raises(ValueError, match="leave something on both sides"):
        parse("style:tint", attributes={"style": np.full(10, "tint")})


CONCEPTS = np.array(["even", "odd", "even", "odd", "none"])[LABELS]


@pytest.mark.parametrize(
    ("spec", "classes", "kind", "name"),
    [
        ("class:3,1", (1, 3), "class", "class-3-1"),
        ("class:2", (2,), "class", "class-2"),
        ("concept:odd", (1, 3), "class", "concept-odd"),
        ("style:tint", (), "sample", "style-tint"),
        ("random:0.2", (), "sample", "random-0.2"),
    ],
)
def test_a_forget_set_knows_its_classes_its_kind_and_a_file_name(spec, classes, kind, name):
    attributes = {"style": STYLED, "concept": CONCEPTS}
    found = forget.parse(spec, LABELS, attributes=attributes)
    assert (found.spec, found.classes, found.duplicates) == (spec, classes, 0)
    assert (found.kind, found.name) == (kind, name)


def test_an_index_file_is_shown_by_its_name(tmp_path):
    (tmp_path / "ids.txt").write_text("0 4")
    found = forget.parse(f"index:{tmp_path / 'ids.txt'}", LABELS)
    assert (found.spec, found.name, found.kind) == ("index:ids.txt", "index-ids.txt", "sample")


def test_without_a_number_of_classes_the_largest_label_is_the_last():
    assert forget.parse("class:3", LABELS).mask.sum() == 1
    with pytest.raises(ValueError, match=r"class must be in \[0, 4\), got 4"):
        forget.parse("class:4", LABELS)


def test_a_set_made_by_hand_is_a_forget_set():
    made = forget.ForgetSet("edge cases", STYLED == "tint")
    assert (made.kind, made.name, made.classes, made.duplicates) == ("sample", "edge-cases", (), 0)


def twins():
    """Ten images, of which rows 0 and 9 are equal, and rows 1, 2 and 4."""
    numbers = np.array([0, 1, 1, 3, 1, 5, 6, 7, 8, 0], np.uint8)
    return data.Split(numbers[:, None, None, None], LABELS.astype(np.int32))


def test_exact_duplicates_are_taken_along_and_counted():
    split = twins()
    found = forget.parse("class:1", split)
    assert np.flatnonzero(found.mask).tolist() == [1, 2, 4]
    assert (found.duplicates, found.classes) == (1, (1,))
    [groups] = data.duplicate_groups(split)
    np.testing.assert_array_equal(forget.parse("class:1", LABELS, groups=groups).mask, found.mask)
    assert forget.parse("class:1", LABELS).mask.sum() == 2
    assert forget.parse("class:1", split.batch()).mask.sum() == 2
    with pytest.raises(ValueError, match="'class:1': 10 of 10"):
        forget.parse("class:1", LABELS, groups=np.zeros(10))


def test_parse_all_gives_one_set_a_spec():
    split = twins()
    sets = forget.parse_all(["class:1", "random:0.3"], split, num_classes=5, seed=2)
    for found, spec in zip(sets, ("class:1", "random:0.3"), strict=True):
        alone = forget.parse(spec, split, num_classes=5, seed=2)
        assert found.spec == spec
        np.testing.assert_array_equal(found.mask, alone.mask)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([], "`forget` must name at least one set, got none"),
        (["class:1", "class:1"], "must name different sets, got class:1 class:1"),
        (["class:1,3", "class:3,1"], "must name different sets, got class:1,3 class:3,1"),
        (["class:1", "class:7"], r"class must be in \[0, 4\), got 7"),
    ],
)
def test_parse_all_refuses(specs, message):
    with pytest.raises(ValueError, match=message):
        forget.parse_all(specs, LABELS)


def test_parse_needs_examples():
    with pytest.raises(ValueError, match="`train` must hold at least one example, got 0"):
        forget.parse("class:0", np.zeros(0, int))


def test_a_set_of_many_classes_has_a_name_that_a_file_may_have():
    labels = np.repeat(np.arange(200), 2)
    sets = [forget.parse("class:" + ",".join(map(str, range(k))), labels) for k in (150, 151)]
    assert all(len(one.name) < 64 for one in sets)
    assert sets[0].name != sets[1].name
