"""TrivialAugment, RandAugment, AugMix and random erasing: ranges, laws, and the flag."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famr_jax import data, train
from famr_jax.cli import flags as cli_flags
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import AUGMENTATIONS, BenchFlags
from famr_jax.data import operations as ops
from famr_jax.data import policies
from famr_jax.provenance import sources_of
from famr_jax.types import Batch

POLICIES = (data.trivial_augment, data.rand_augment, data.augmix)
ALL = (*POLICIES, data.random_erasing)
HEIGHT, WIDTH = 12, 16
jitted = functools.cache(jax.jit)


def photographs(n=24, channels=3):
    """Images of stored grey levels: ramps with noise, none like another."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    ramps = np.stack([15 * x, 20 * y, 8 * (x + y)], -1)[..., :channels]
    noise = np.random.default_rng(0).integers(-9, 9, (n, HEIGHT, WIDTH, channels))
    levels = np.clip(ramps + noise, 0, 255).astype(np.float32)
    return jnp.asarray(levels / np.float32(127.5) - 1)


def documented(name, height, width):
    """The magnitudes of torchvision's documentation, by its names of operations, without signs."""
    bins = 10 if name == "AugMix" else 31
    steps = np.arange(bins) / (bins - 1)
    wide = name == "TrivialAugmentWide"
    share = {"RandAugment": 150 / 331, "AugMix": 1 / 3}.get(name)
    bits, cut = {"RandAugment": (8, 4), "AugMix": (4, 4)}.get(name, (8, 6))
    shear, enhance = (0.99, 0.99) if wide else (0.3, 0.9)
    return {
        **({} if name == "AugMix" else {"Identity": (None, False)}),
        "ShearX": (shear * steps, True),
        "ShearY": (shear * steps, True),
        "TranslateX": ((32 if wide else share * width) * steps, True),
        "TranslateY": ((32 if wide else share * height) * steps, True),
        "Rotate": ((135 if wide else 30) * steps, True),
        "Brightness": (enhance * steps, True),
        "Color": (enhance * steps, True),
        "Contrast": (enhance * steps, True),
        "Sharpness": (enhance * steps, True),
        "Posterize": (bits - np.round(cut * steps), False),
        "Solarize": (255 * (1 - steps), False),
        "AutoContrast": (None, False),
        "Equalize": (None, False),
    }


NAMES = {
    "Identity": ops.identity,
    "ShearX": ops.shear_x,
    "ShearY": ops.shear_y,
    "TranslateX": ops.translate_x,
    "TranslateY": ops.translate_y,
    "Rotate": ops.rotate,
    "Brightness": ops.brightness,
    "Color": ops.colour,
    "Contrast": ops.contrast,
    "Sharpness": ops.sharpness,
    "Posterize": ops.posterize,
    "Solarize": ops.solarize,
    "AutoContrast": ops.autocontrast,
    "Equalize": ops.equalize,
}


def mine(name, height, width):
    """Our table of the same form, and what is drawn from it."""
    space = {
        "TrivialAugmentWide": policies.trivial_space,
        "RandAugment": functools.partial(policies.rand_space, height, width),
        "AugMix": functools.partial(policies.augmix_space, height, width),
    }[name]()
    table = policies.magnitudes(space, 10 if name == "AugMix" else 31)
    smooth = {value: key for key, value in ops.SMOOTH.items()}
    found = {}
    for (operation, _, _, signed), row in zip(space, table, strict=True):
        assert (operation in smooth) == (name == "AugMix" and operation in ops.SMOOTH.values())
        known = {function: word for word, function in NAMES.items()}
        found[known[smooth.get(operation, operation)]] = row, signed
    if name == "AugMix":
        assert next(iter(found)) == "Identity"
        del found["Identity"]
    return found


@pytest.mark.parametrize("name", ["TrivialAugmentWide", "RandAugment", "AugMix"])
def test_operations_and_magnitudes_are_the_documented_ones(name):
    found, expected = mine(name, HEIGHT, WIDTH), documented(name, HEIGHT, WIDTH)
    assert list(found) == list(expected)
    for each, (magnitudes, signed) in expected.items():
        row, drawn = found[each]
        row = np.round(row) if each == "Posterize" else row
        assert drawn == signed, each
        np.testing.assert_allclose(row, 0 if magnitudes is None else magnitudes, rtol=1e-6)


@pytest.mark.parametrize("name", ["TrivialAugmentWide", "RandAugment", "AugMix"])
def test_documented_magnitudes_are_torchvisions(name):
    transforms = pytest.importorskip(
        "torchvision.transforms", reason="torchvision, whose own table this reads, is not installed"
    )
    policy = getattr(transforms, name)()
    size = () if name == "TrivialAugmentWide" else ((HEIGHT, WIDTH),)
    theirs = policy._augmentation_space(10 if name == "AugMix" else 31, *size)
    expected = documented(name, HEIGHT, WIDTH)
    assert set(theirs) == set(expected)
    for each, (magnitudes, signed) in theirs.items():
        mine = 0 if expected[each][0] is None else expected[each][0]
        np.testing.assert_allclose(np.asarray(magnitudes), mine, rtol=1e-6)
        assert signed == expected[each][1]


@pytest.mark.parametrize("augment", ALL)
def test_the_key_decides_all_and_range_shape_and_dtype_stay(augment):
    x, run = photographs(), jitted(augment)
    first, again, other = (np.asarray(run(jax.random.key(seed), x)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (first.shape, first.dtype) == (x.shape, x.dtype)
    assert first.min() >= -1
    assert first.max() <= 1
    assert len(np.unique(np.abs(first - x).sum((1, 2, 3)))) > 6  # each image has its own draw


@pytest.mark.parametrize("augment", ALL)
def test_every_image_of_one_picture_has_its_own_draw(augment):
    same = jnp.repeat(photographs(1), 24, axis=0)
    found = np.asarray(jitted(augment)(jax.random.key(2), same))
    assert len(np.unique(found.reshape(24, -1), axis=0)) > 6


@pytest.mark.parametrize(
    "augment", [pytest.param(data.trivial_augment, marks=pytest.mark.slow), data.random_erasing]
)
def test_under_vmap_each_key_gives_what_it_gives_alone(augment):
    """Under `vmap` every operation runs and one is selected, as on an accelerator."""
    x, keys = photographs(), jax.random.split(jax.random.key(3), 2)
    together = jax.jit(jax.vmap(augment, (0, None)))(keys, x)
    alone = jnp.stack([jitted(augment)(key, x) for key in keys])
    # One grey level: a product that is cut to a whole one may be fused otherwise.
    np.testing.assert_allclose(together, alone, atol=1.01 / 127.5)
    assert (np.asarray(together) == np.asarray(alone)).mean() > 0.999


@pytest.mark.slow
def test_without_jit_grey_images_come_out_the_same():
    x, key = photographs(4, channels=1), jax.random.key(0)
    found = np.asarray(jitted(data.trivial_augment)(key, x))
    assert found.shape == x.shape
    np.testing.assert_allclose(data.trivial_augment(key, x), found, atol=1.01 / 127.5)


@pytest.mark.parametrize("augment", POLICIES)
def test_other_channels_are_refused(augment):
    with pytest.raises(ValueError, match=r"`x` must be \[n, height, width, 1 or 3\], got \[2, 4"):
        augment(jax.random.key(0), jnp.zeros((2, 4, 4, 2)))


@pytest.mark.parametrize("augment", ALL)
def test_another_key_is_refused(augment):
    with pytest.raises(ValueError, match="`key` must come from"):
        augment(7, jnp.zeros((2, 4, 4, 3)))


def test_trivial_augment_draws_each_operation_equally_often_and_applies_it_as_drawn():
    """Found again among all 14 operations at all 31 strengths of both signs."""
    n, x = 500, photographs(1)
    found = np.asarray(jitted(data.trivial_augment)(jax.random.key(5), jnp.repeat(x, n, axis=0)))
    levels = np.round((found + 1) * 127.5).astype(int)
    original = jnp.round((x[0] + 1) * 127.5).astype(jnp.int32)
    made = {}
    space = policies.trivial_space()
    for i, row in enumerate(policies.magnitudes(space, 31)):
        operation, _, _, signed = space[i]
        strengths = jnp.asarray([*row, *(-row if signed else [])])
        for image in np.asarray(jax.jit(jax.vmap(operation, (None, 0)))(original, strengths)):
            made.setdefault(image.tobytes(), set()).add(i)
    drawn = [made.get(image.astype(np.int32).tobytes()) for image in levels]
    missed = drawn.count(None)
    assert missed <= n // 50  # a level off, where a product is cut
    alone = np.array([next(iter(each)) for each in drawn if each and len(each) == 1])
    counts = np.bincount(alone, minlength=14)
    # Those whose 31 strengths all change the image, apart from the first one.
    for i in (1, 2, 5, 6, 8, 9):
        assert abs(counts[i] - n / 14) < 4 * (n / 14) ** 0.5 + n / 14 / 31, (i, counts)


def test_the_identity_keeps_every_bit(monkeypatch):
    monkeypatch.setattr(policies, "trivial_space", lambda: ((ops.identity, 0, 0, False),))
    x = photographs()
    # A function of its own: jit keeps what it made of `trivial_augment` elsewhere.
    found = jax.jit(lambda key, x: data.trivial_augment(key, x))(jax.random.key(0), x)
    np.testing.assert_array_equal(found, x)


def test_augmix_of_chains_that_change_nothing_is_the_image(monkeypatch):
    still = ((ops.identity, 0, 0, False),) * 2
    monkeypatch.setattr(policies, "augmix_space", lambda height, width: still)
    x = photographs()
    mixed = jax.jit(lambda key, x: data.augmix(key, x))(jax.random.key(0), x)
    np.testing.assert_allclose(mixed, x, atol=1e-6)


def test_augmix_weighs_chains_as_a_flat_dirichlet_and_the_image_uniformly(monkeypatch):
    """With every chain inverted once and black images, the mixture is 1 - m of white."""
    once = ((ops.identity, 0, 0, False), (ops.invert, 0, 0, False))
    monkeypatch.setattr(policies, "augmix_space", lambda height, width: once)
    x = jnp.full((4000, 1, 1, 1), -1.0)
    mixed = jax.jit(lambda key, x: data.augmix(key, x))(jax.random.key(0), x)
    white = (np.asarray(mixed, np.float64).ravel() + 1) / 2
    # Depth 1 or 3 is white, 2 is black again: (1 - m) sum w_i b_i with b_i = 1 twice in three.
    assert white.mean() == pytest.approx(1 / 2 * 2 / 3, abs=0.02)
    variance = 1 / 3 * (4 / 9 + 2 / 9 * 1 / 2) - 1 / 9  # E[(1-m)^2] E[(sum w b)^2] - mean^2
    assert white.var() == pytest.approx(variance, abs=0.01)


def test_random_erasing_blackens_boxes_of_the_documented_law():
    x = jnp.ones((3000, 20, 30, 1))
    found = np.asarray(jitted(data.random_erasing)(jax.random.key(0), x))[..., 0]
    erased = found == -1
    assert ((found == 1) | erased).all()
    touched = erased.any((1, 2))
    assert abs(touched.mean() - 0.5) < 0.03
    heights, widths = erased.any(2).sum(1)[touched], erased.any(1).sum(1)[touched]
    np.testing.assert_array_equal(heights * widths, erased.sum((1, 2))[touched])
    assert heights.max() < 20
    assert widths.max() < 30
    share = heights * widths / 600
    assert 0.015 < share.min() < 0.03
    assert 0.3 < share.max() < 0.36
    assert share.mean() == pytest.approx(0.17, abs=0.01)
    ratio = heights / widths
    assert ratio.min() < 0.4
    assert ratio.max() > 2.5
    corners = erased[touched][:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners.mean(0) > 0).all()


def bench(mirrored, view=None, **flags):
    return SimpleNamespace(
        flags=BenchFlags(**flags),
        dataset=SimpleNamespace(mirrored=mirrored),
        model=SimpleNamespace(view=view),
    )


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_flag_names_what_training_does(mirrored):
    own = data.crop_and_flip if mirrored else data.crop
    chosen = {
        word: Bench.augment.fget(bench(mirrored, augment=word)) for word in (None, *AUGMENTATIONS)
    }
    on_top = {
        "trivial": data.trivial_augment,
        "rand": data.rand_augment,
        "erasing": data.random_erasing,
        "augmix": data.augmix,
    }
    assert chosen == {
        None: own,
        "none": None,
        "crop": data.crop,
        "crop_flip": data.crop_and_flip,
        **{word: data.in_turn(own, each) for word, each in on_top.items()},
    }
    large = bench(mirrored, view=data.centre_crop(8), image_size=8, augment="erasing")
    resized = data.random_resized_crop(8, flip=mirrored)
    assert Bench.augment.fget(large) == data.in_turn(resized, data.random_erasing)


def test_an_unknown_word_is_refused():
    with pytest.raises(ValueError, match=r"`augment` must be one of none, crop, .* got 'mixup'"):
        cli_flags.check(BenchFlags(augment="mixup"))


def test_what_an_augmentation_imports_counts_for_the_store(tmp_path):
    def hashed(word):
        flags = BenchFlags(augment=word)
        augment = Bench.augment.fget(bench(True, augment=word))
        return set(Bench.sources.fget(SimpleNamespace(flags=flags, augment=augment)))

    own = {"famr_jax.data.augment"}
    assert hashed("none") == hashed(None) - own
    assert hashed("crop") == hashed("crop_flip") == hashed(None)
    assert hashed("rand") - hashed(None) == {"famr_jax.data.policies"}
    assert own <= hashed("rand")
    assert sources_of("famr_jax.data.policies") != sources_of("famr_jax.data.operations")


def test_in_turn_applies_one_after_the_other_with_keys_of_their_own():
    def shifted(key, x):
        return x + jax.random.uniform(key)

    def stretched(key, x):
        return x * jax.random.uniform(key)

    key, x = jax.random.key(0), jnp.arange(3.0)
    both = data.in_turn(shifted, stretched)
    first, second = jax.random.split(key)
    np.testing.assert_array_equal(both(key, x), stretched(second, shifted(first, x)))
    assert both.__name__ == "shifted_then_stretched"
    assert data.in_turn(shifted, stretched) is both


def test_a_recipe_trains_with_it(logistic):
    x = photographs(8, channels=1)[:, :4, :4]
    batch = Batch(x, jnp.arange(8) % 3)
    recipe = train.Recipe(epochs=1, batch_size=8, lr=1e-2, augment=data.trivial_augment)
    learner = recipe.learner(logistic.apply, 8)
    step, params = jax.jit(learner.step), logistic.init(jax.random.key(2))
    first, other = (
        step(learner.init(params), batch, jax.random.key(seed))[0].params for seed in (0, 1)
    )
    leaves = [np.asarray(jax.tree.leaves(each)[-1]) for each in (first, other)]
    assert np.isfinite(leaves).all()
    assert (leaves[0] != leaves[1]).any()
