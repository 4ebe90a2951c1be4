"""The report's figures, on vectors made for it: against the published definitions, and against the libraries' own."""

from dataclasses import asdict

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from qwen3_vl_embed.evaluation import distances, geometry, probe, retrieval
from qwen3_vl_embed.evaluation.colours import delta_e, xkcd
from qwen3_vl_embed.evaluation.pairs import Pairs
from qwen3_vl_embed.evaluation.perception import of_first
from qwen3_vl_embed.evaluation.report import Report, report
from qwen3_vl_embed.evaluation.resampling import Resampling, mean, median, pair_mean, std
from qwen3_vl_embed.evaluation.space import centred, raw
from qwen3_vl_embed.files.errors import SourceError

N = 120
PALETTE = xkcd()
COLOURS = PALETTE.rgb[::7][:N]
NAMES = PALETTE.names[::7][:N]


def pairs(text: np.ndarray, image: np.ndarray) -> Pairs:
    return Pairs(NAMES, text.astype(np.float32), image.astype(np.float32), COLOURS)


def knowing(noise: float = 0.3, offset: float = 0.0, gap: float = 0.0) -> Pairs:
    """Vectors that hold the colour, noise, a direction shared by all, and one that only the images have."""
    rng = np.random.default_rng(7)
    signal = np.tanh(Pairs(NAMES, np.ones((N, 1)), np.ones((N, 1)), COLOURS).lab / 50 @ rng.normal(size=(3, 32)))
    text, image = (signal + noise * rng.normal(size=signal.shape) for _ in range(2))
    shared, images_only = rng.normal(size=(2, 32))
    return pairs(text + offset * shared, image + offset * shared + gap * images_only)


def ignorant(offset: float = 30.0) -> Pairs:
    """Pure noise around one direction: an untrained network."""
    text, image = np.random.default_rng(3).normal(size=(2, N, 32)) + offset
    return pairs(text, image)


@pytest.fixture(scope="module")
def known() -> Report:
    return report(knowing(), "knowing")


@pytest.fixture(scope="module")
def collapsed() -> Report:
    return report(ignorant(), "ignorant")


def benchmark_figures(text: np.ndarray, image: np.ndarray) -> dict[str, float]:
    """The benchmark's published definitions, one pair at a time: 1 - cos after L2 normalisation, numpy's defaults."""
    found = np.array([
        1 - np.dot(t / np.linalg.norm(t), i / np.linalg.norm(i)) for t, i in zip(text, image, strict=True)
    ])  # fmt: skip
    return {name: getattr(np, name)(found) for name in ("mean", "median", "std", "min", "max")}


@pytest.mark.parametrize("make", [knowing, ignorant, lambda: knowing(gap=20), lambda: knowing(offset=5)])
def test_the_benchmarks_figures_from_the_same_vectors(make):
    subject = make()
    got = distances.figures(raw(subject), Resampling(N))
    for name, value in benchmark_figures(subject.text.astype(float), subject.image.astype(float)).items():
        assert f"{got[f'matched_{name}'].value:.6f}" == f"{value:.6f}"


def test_auc_and_d_prime_are_the_textbooks(known):
    cosine_distance = 1 - known.spaces["raw"].text_to_image
    own = np.eye(N, dtype=bool)
    got = known.figures["raw"]
    assert got["auc"].value == pytest.approx(roc_auc_score(~own.ravel(), cosine_distance.ravel()), abs=1e-6)
    near, far = cosine_distance[own], cosine_distance[~own]
    assert got["unmatched_mean"].value == pytest.approx(far.mean())
    assert got["ratio"].value == pytest.approx(near.mean() / far.mean())
    assert got["d_prime"].value == pytest.approx((far.mean() - near.mean()) / np.sqrt((near.var() + far.var()) / 2))


@pytest.mark.parametrize("kind", ["image_to_image", "text_to_text", "text_to_image"])
def test_spearman_is_scipys(known, kind):
    off = ~np.eye(N, dtype=bool)
    expected = spearmanr(1 - getattr(known.spaces["raw"], kind)[off], known.differences[off]).statistic
    assert known.figures["raw"][f"spearman_{kind}"].value == pytest.approx(expected, abs=1e-6)


def test_geometry_is_what_it_says(known):
    space, got = known.spaces["raw"], known.figures["raw"]
    text, image = space.rows("text"), space.rows("image")
    assert got["anisotropy_text"].value == pytest.approx(np.linalg.norm(text.mean(axis=0)))
    assert got["modality_gap"].value == pytest.approx(np.linalg.norm(text.mean(axis=0) - image.mean(axis=0)))
    variances = np.linalg.svd(image - image.mean(axis=0), compute_uv=False) ** 2
    assert got["top_share_image"].value == pytest.approx(variances[0] / variances.sum())


def test_intrinsic_dimension_is_that_of_the_surface():
    """Of points on a great sphere of d dimensions in a space of many; twins are left out; one point has none."""
    rng = np.random.default_rng(0)
    for d in (2, 5):
        plane = np.linalg.qr(rng.normal(size=(64, d + 1)))[0]
        rows = rng.normal(size=(2000, d + 1)) @ plane.T
        half = Pairs(tuple(map(str, range(2000))), rows, np.concatenate([rows[:1000], rows[:1000]]))
        got = geometry.figures(raw(half), Resampling(2000, resamples=0))
        assert got["intrinsic_dimension_text"].value == pytest.approx(d, rel=0.08)
        assert np.isnan(got["intrinsic_dimension_image"].value)  # everyone has a twin
    alike = pairs(np.ones((N, 8)), np.ones((N, 8)))
    assert np.isnan(geometry.figures(raw(alike), Resampling(N))["intrinsic_dimension_text"].value)


def test_in_one_pool_a_gap_returns_the_querys_own_modality():
    """MMEB-V3's failure: both sides are ranked well alone, and every first answer is of the wrong modality."""
    subject = knowing(noise=0.02)
    text, image = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (subject.text, subject.image))
    nothing, one = np.zeros((N, 1)), np.ones((N, 1))  # a dimension of each modality's own, equal for all of it
    apart = pairs(np.hstack([text, one, nothing]), np.hstack([image, nothing, one]))
    together, gap = (retrieval.figures(raw(each), Resampling(N)) for each in (subject, apart))
    for direction in ("text_to_image", "image_to_text"):
        assert together[f"{direction}_recall_1"].value == gap[f"{direction}_recall_1"].value > 0.7
        assert together[f"{direction}_mixed_recall_1"].value > 0.7 > 0 == gap[f"{direction}_mixed_recall_1"].value
        assert gap[f"{direction}_wrong_modality"].value == 1
    expected = together["text_to_image_recall_1"].value - together["image_to_text_recall_1"].value
    assert together["asymmetry_recall_1"].value == pytest.approx(expected)


def test_one_pool_by_hand():
    across = np.array([[0.9, 0.1], [0.4, 0.5]])
    alike = np.array([[1.0, 0.8], [0.8, 1.0]])  # each query's cosine with itself does not count
    first, wrong = retrieval.in_one_pool(across, alike)
    assert (first.tolist(), wrong.tolist()) == ([1, 0], [0, 1])
    first, wrong = retrieval.in_one_pool(across, np.array([[1.0, 0.9], [0.9, 1.0]]))  # a tie counts against the model
    assert (first.tolist(), wrong.tolist()) == ([0, 0], [1, 1])


def test_shuffled_answers_find_the_wrong_modality_half_of_the_time():
    rng = np.random.default_rng(5)
    got = [retrieval.figures(raw(pairs(*rng.normal(size=(2, N, 32)))), Resampling(N, resamples=0)) for _ in range(20)]
    for name in ("wrong_modality", "mixed_recall_1"):
        found = [each[f"text_to_image_{name}"].value for each in got]
        expected = got[0][f"text_to_image_{name}"].chance
        assert abs(np.mean(found) - expected) <= 4 * np.std(found) / np.sqrt(len(found))


def test_what_is_read_off_was_left_out_of_the_fit(known):
    """Against the same regression, fitted N times without a row."""
    rows, lab = known.spaces["raw"].rows("text")[:40], known.pairs.lab[:40]
    scaled = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    best = np.full(lab.shape, np.inf)
    for penalty in probe.PENALTIES:
        off = np.array([
            Ridge(penalty).fit(np.delete(scaled, n, 0), np.delete(lab, n, 0)).predict(scaled[n : n + 1])[0] - lab[n]
            for n in range(40)
        ])  # fmt: skip
        better = (off**2).mean(axis=0) < best.mean(axis=0)
        best[:, better] = (off**2)[:, better]
    np.testing.assert_allclose(probe.errors(rows, lab), best, rtol=1e-6)


def test_captions_are_read_off_by_their_words():
    captions = tuple(f"{number} {colour} things" for number in ("one", "two", "three", "four") for colour in "abcde")
    both = Pairs(captions, np.ones((20, 4)), np.ones((20, 4)))
    assert probe.wanted(both).shape == (20, 9)  # "things" is in all of them
    assert probe.wanted(Pairs(tuple(map(str, range(30))), np.ones((30, 4)), np.ones((30, 4)))) is None
    known = np.random.default_rng(0).normal(size=(9, 16))
    vectors = probe.wanted(both) @ known
    figures = report(Pairs(captions, vectors, vectors[:, ::-1]), "captions").figures["raw"]
    assert figures["probe_text"].value > 0.9
    assert "spearman_text_to_text" not in figures


def test_ranks_and_ties():
    similarity = np.array([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.3, 0.3, 0.3]])
    assert retrieval.ranks(similarity).tolist() == [1, 2, 3]
    assert retrieval.ranks(similarity + np.array([0, 1e-9, -1e-9])).tolist() == [1, 2, 3]  # rounding breaks no tie
    worth = np.array([[1.0, 5, 5], [2, 4, 9], [0, 3, 6]])
    assert of_first(similarity, worth).tolist() == [1, 3, 3]  # the mean over the tied


def test_counting_everything_once_is_numpy():
    values, matrix = np.random.default_rng(0).normal(size=N), np.random.default_rng(1).normal(size=(N, N))
    ones = np.ones((1, N))
    for ours, numpys in ((mean, np.mean), (std, np.std), (median, np.median)):
        assert ours(ones, values)[0] == pytest.approx(numpys(values))
    assert pair_mean(ones, matrix)[0] == pytest.approx(matrix[~np.eye(N, dtype=bool)].mean())


def test_counting_as_drawn_is_a_bootstrap():
    values, matrix = np.random.default_rng(0).normal(size=N), np.random.default_rng(1).normal(size=(N, N))
    drawn = np.random.default_rng(2).integers(0, N, N)
    counts = np.bincount(drawn, minlength=N)[None].astype(float)
    for ours, numpys in ((mean, np.mean), (std, np.std), (median, np.median)):
        assert ours(counts, values)[0] == pytest.approx(numpys(values[drawn]))
    different = drawn[:, None] != drawn[None]
    assert pair_mean(counts, matrix)[0] == pytest.approx(matrix[np.ix_(drawn, drawn)][different].mean())


def test_every_value_lies_in_its_interval(known):
    for kind, found in known.figures.items():
        for name, figure in found.items():
            if figure.low is not None:
                assert figure.low <= figure.value <= figure.high, (kind, name)


def test_chance_is_what_shuffled_pairs_give():
    rng = np.random.default_rng(5)
    known = knowing()
    shuffled = [pairs(known.text, known.image[rng.permutation(N)]) for _ in range(20)]
    got = [retrieval.figures(raw(each), Resampling(N)) for each in shuffled]
    for name in ("recall_1", "recall_10", "mrr", "median_rank"):
        found = [each[f"text_to_image_{name}"].value for each in got]
        expected = got[0][f"text_to_image_{name}"].chance
        assert abs(np.mean(found) - expected) <= 4 * np.std(found) / np.sqrt(len(found))


def test_a_constant_vector_wins_the_mean_distance_and_nothing_else():
    constant = report(pairs(np.ones((N, 8)), np.ones((N, 8))), "constant")
    got = constant.figures["raw"]
    assert got["matched_mean"].value == pytest.approx(0, abs=1e-9)
    assert got["text_to_image_recall_10"].value == 0
    assert got["text_to_image_median_rank"].value == N
    assert got["auc"].value == 0.5
    assert constant.verdict.kind == "collapsed"
    assert "a constant vector would score 0" in constant.verdict.words
    assert constant.as_json()["raw"]["ratio"]["value"] is None


def test_an_untrained_network_wins_the_mean_distance_and_is_called_collapsed(known, collapsed):
    assert collapsed.figures["raw"]["matched_mean"].value < known.figures["raw"]["matched_mean"].value
    assert collapsed.verdict.kind == "collapsed"
    assert "has collapsed" in collapsed.verdict.words
    assert known.verdict.kind == "sound"
    assert known.figures["raw"]["probe_text"].value > 0.5 > 0.1 > collapsed.figures["raw"]["probe_text"].value


def test_isotropic_noise_is_called_collapsed_for_another_reason():
    assert "hardly nearer to its own image" in report(ignorant(offset=0), "noise").verdict.words


def test_a_cone_that_knows_is_narrow_not_collapsed():
    assert report(knowing(noise=0.1, offset=5), "cone").verdict.kind == "narrow"


def test_centring_uncovers_what_a_gap_hides():
    gap = report(knowing(gap=50), "gap")
    recalls = [gap.figures[kind]["image_to_text_recall_10"].value for kind in ("raw", "centred")]
    assert recalls[0] < 0.3 < recalls[1]
    assert gap.verdict.kind == "collapsed"
    assert "an offset hides" in gap.verdict.words


def test_centring_is_fitted_on_the_other_half():
    subject = knowing(offset=3)
    views = centred(subject).views
    assert sorted(np.concatenate([view.rows for view in views]).tolist()) == list(range(N))
    text = subject.text / np.linalg.norm(subject.text, axis=1, keepdims=True)
    for view, other in zip(views, views[::-1], strict=True):
        expected = text - text[other.rows].mean(axis=0)
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(view.text, expected, atol=1e-6)


def test_centring_makes_nothing_of_noise(collapsed):
    got = collapsed.figures["centred"]
    assert 0.4 < got["auc"].value < 0.6
    assert got["anisotropy_text"].value > 0.05  # judged apart: the halves' residual means would cancel


def test_colour_figures_are_those_of_ciede2000(known):
    first = known.spaces["raw"].text_to_image.argmax(axis=1)
    off = delta_e(known.pairs.lab, known.pairs.lab)[np.arange(N), first]
    assert known.figures["raw"]["text_to_image_first_delta_e"].value == pytest.approx(off.mean())
    assert known.figures["raw"]["text_to_image_first_near"].value == pytest.approx((off <= 10).mean())


def test_the_same_vectors_give_the_same_report(known):
    again = report(knowing(), "knowing")
    assert {kind: {k: asdict(f) for k, f in found.items()} for kind, found in again.figures.items()} == {
        kind: {k: asdict(f) for k, f in found.items()} for kind, found in known.figures.items()
    }


@pytest.mark.parametrize(
    ("text", "image", "sentence"),
    [
        (np.ones((9, 4)), np.ones((9, 4)), "needs 10 to"),
        (np.ones((N, 4)), np.ones((N, 5)), "do not fit together"),
        (np.zeros((N, 4)), np.ones((N, 4)), "A text vector is zero"),
        (np.ones((N, 4)), np.full((N, 4), np.nan), "An? image vector is zero or not finite"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(text, image, sentence):
    with pytest.raises(SourceError, match=sentence):
        Pairs(NAMES[: len(text)], text, image)
