"""Textured scenes: one seed one picture, prompts of known words, latents that are white."""

import pytest
import torch


@pytest.fixture
def world(script):
    return script("scenes.world")


@pytest.fixture
def words(script):
    return script("scenes.words")


def drawn(world, n, seed=0, **kwargs):
    return world.sample_scenes(n, torch.Generator().manual_seed(seed), **kwargs)


def test_a_seed_fixes_the_pictures(world):
    first, second = (world.render(drawn(world, 4)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (4, 1, 3, 128, 128)
    assert 0 <= first.min() <= first.max() <= 1
    assert not torch.equal(first, world.render(drawn(world, 4, seed=1)))


def test_a_scene_looks_the_same_in_any_batch(world):
    scenes = drawn(world, 6)
    assert torch.allclose(world.render(scenes)[4:], world.render(scenes[4:]), atol=1e-5)


def test_pictures_are_rich_in_detail(world):
    """Half the resolution loses what a smooth picture would keep."""
    pictures = world.render(drawn(world, 16))[:, 0]
    half = torch.nn.functional.avg_pool2d(pictures, 2)
    back = torch.nn.functional.interpolate(half, scale_factor=2, mode="bilinear")
    error = (back - pictures).square().mean((1, 2, 3))
    assert -10 * error.log10().median() < 30


def test_clips_begin_with_the_picture_and_move(world):
    scenes = drawn(world, 3, moving=True)
    clip = world.render(scenes, 3)
    assert clip.shape == (3, 3, 3, 128, 128)
    assert (clip[:, 0] - world.render(scenes)[:, 0]).abs().mean() < 0.02
    assert ((clip[:, 2] - clip[:, 0]).abs().mean((1, 2, 3)) > 0.01).all()
    # What the prompt names, the thing in front, is on the middle of most clips.
    many = drawn(world, 512, moving=True)
    middle = many.place[:, -1, 0] + (many.speed[:, -1] - many.pan) * 23
    assert ((middle > 0) & (middle < 128)).float().mean() > 0.85
    still = world.render(drawn(world, 3), 2)
    assert torch.equal(still[:, 0], still[:, 1])


def test_every_word_is_one_token(script, words):
    flux = script("scenes.flux")
    clip, t5 = flux.tokenizers()
    text = " ".join(words.WORDS)
    assert len(t5(text).input_ids) == len(words.WORDS) + 1
    assert t5.unk_token_id not in t5(text).input_ids
    assert len(clip(text, truncation=False).input_ids) == len(words.WORDS) + 2


def test_captions_fit_and_name_what_stands_in_front(world, words):
    scenes = drawn(world, 512)
    texts = words.captions(scenes, torch.Generator().manual_seed(0))
    assert max(len(text.split()) for text in texts) + 2 <= words.TOKENS
    known = set(words.WORDS)
    assert all(word in known for text in texts for word in text.split())
    kinds = list(world.THINGS)
    assert all(kinds[scenes.kind[i, -1]] in text for i, text in enumerate(texts))


def test_held_out_prompts_are_never_taught(world, words, script):
    pools = script("scenes.pools")
    scenes = drawn(world, 256)
    texts = pools.texts(scenes, torch.Generator().manual_seed(0), 0.0)
    assert not any(words.held_out(text) for text in texts if text)
    assert all(words.held_out(text) for text in words.held_out_prompts(20, 7))


def test_cells_show_the_nearest_thing_where_it_has_gone(world, script):
    visible = script("scenes.seen").visible
    scenes = drawn(world, 8, moving=True)
    for size in (128, 64):
        assert visible(scenes, 4, size).shape == (8, (size // 4) ** 2, 3)
    side, times = 32, torch.tensor([0.0, 6.0])
    seen = visible(scenes, 4, 128, times).view(8, 2, side, side, 3)
    y = ((scenes.place[:, -1, 1] - 0.9 * scenes.radius[:, -1]) / 4).long()
    for frame, time in enumerate(times):
        x = (scenes.place[:, -1, 0] + (scenes.speed[:, -1] - scenes.pan) * time) / 4
        there = (x >= 0) & (x < side)
        kinds = seen[torch.arange(8), frame, y, x.long().clamp(0, side - 1), 0]
        assert torch.equal(kinds[there], scenes.kind[there, -1])


def test_whitening_changes_latents_and_no_picture(script):
    module = script("scenes.vae")
    torch.manual_seed(0)
    vae = module.build_vae()
    pictures = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        before = vae.encode(pictures).latent_dist.mean
        wanted = vae.decode(before).sample
        flat = before.transpose(0, 1).flatten(1)
        module.whiten(vae, flat.mean(1), torch.cov(flat))
        after = vae.encode(pictures).latent_dist.mean
        assert torch.allclose(vae.decode(after).sample, wanted, atol=1e-4)
    white = after.transpose(0, 1).flatten(1)
    assert torch.allclose(torch.cov(white), torch.eye(len(white)), atol=1e-3)
    assert white.mean(1).abs().max() < 1e-3
    assert module.from_white(after) < 0.01 < module.from_white(before)


def test_whiteness_is_a_number_in_mixed_precision(script):
    """Products in bfloat16 gave a covariance with negative eigenvalues, and NaN as its loss."""
    from_white = script("scenes.vae").from_white
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(1, 1, 24, 24, generator=generator)
    latents = 3 * common + 0.05 * torch.randn(2, 16, 24, 24, generator=generator)
    wanted = from_white(latents)
    assert torch.isfinite(wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(from_white(latents), wanted)


@pytest.fixture
def pool(script, monkeypatch, tmp_path):
    """Two small chunks, encoded by an untrained autoencoder."""
    pools, vae = script("scenes.pools"), script("scenes.vae")
    monkeypatch.setattr(pools, "FOLDER", tmp_path)
    torch.manual_seed(0)
    model = vae.build_vae().eval()
    monkeypatch.setattr(pools, "averaged", lambda name, _: model)
    pools.extend(12, chunk=6)
    return pools


def test_pools_grow_and_keep_what_they_had(pool):
    assert [p.name for p in pool.files()] == ["scenes-0000.pt", "scenes-0001.pt"]
    before = pool.Pool(limit=12)
    pool.extend(18, chunk=6)
    after, whole = pool.Pool(limit=12), pool.Pool()
    assert (after.count, whole.count) == (12, 18)
    first, second = (p.batch(5, True, torch.Generator().manual_seed(3)) for p in (before, after))
    assert torch.equal(first[0], second[0])
    assert first[0].shape == (5, 6, 32, 32)
    assert torch.equal(first[1].kind, second[1].kind)


def test_the_loss_follows_from_the_generator(script, pool):
    flux = script("scenes.flux")
    torch.manual_seed(0)
    model, data = flux.build_flux(), pool.Pool()
    for small in (True, False):
        loss = flux.flux_loss(data, lambda step, small=small: (1, small))
        first, second = (
            loss(model, 0, torch.Generator().manual_seed(4)).detach() for _ in range(2)
        )
        assert torch.equal(first, second)
        assert torch.isfinite(first)


def test_small_pictures_lie_over_whole_ones(script):
    flux = script("scenes.flux")
    small, whole = flux.image_ids(True), flux.image_ids(False)
    assert (len(small), len(whole)) == (256, 1024)
    grid = whole.view(16, 2, 16, 2, 3).mean((1, 3)).view(256, 3)
    assert torch.equal(small, grid)


@pytest.fixture
def hardness(script):
    return script("scenes.hardness")


def test_white_latents_have_a_power_of_one(hardness):
    noise = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    power = hardness.power(5 * noise + 2, scale=1.5)
    assert power.shape == (3 * 16 * 16,)
    assert power.mean().item() == pytest.approx(1.5**2)
    assert power.median().item() == pytest.approx(1.5**2, rel=0.05)


def test_the_velocity_is_that_of_the_exact_denoiser(hardness):
    """Along a way that is followed in tiny steps by what normally distributed latents ask for."""
    power = torch.tensor([0.01, 1.0, 4.0], dtype=torch.float64)
    levels = torch.linspace(1, 0, 20_001, dtype=torch.float64)
    state, wanted = torch.ones(3, dtype=torch.float64), hardness.velocity(power, levels)
    for i in range(len(levels) - 1):
        s = levels[i]
        noised_variance = (1 - s) ** 2 * power + s**2
        picture, noise = (1 - s) * power / noised_variance * state, s / noised_variance * state
        if i % 4000 == 0:
            assert torch.allclose(noise - picture, wanted[i], atol=1e-3)
        state = state + (levels[i + 1] - s) * (noise - picture)
    assert torch.allclose(state, power.sqrt(), rtol=1e-2)  # each frequency ends at its own strength


def test_smooth_latents_are_foretold_to_be_easy(hardness):
    frequencies = torch.linspace(1, 64, 256, dtype=torch.float64)
    smooth = frequencies**-3
    white, smooth = torch.linspace(1.75, 2.75, 256).double(), 2.25 * smooth / smooth.mean()
    hard, easy = (hardness.foretold(power, 50, 3.0) for power in (white, smooth))
    assert hard.change[1] > 2 * easy.change[1]
    assert 1.8 < hard.newest < 2.3  # all that is normal can be extrapolated
    finer = hardness.foretold(white, 100, 3.0)
    assert finer.change[1] == pytest.approx(hard.change[1] / 2, rel=0.1)
    assert finer.half > hard.half
