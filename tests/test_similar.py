"""The normal images that look most like another one: which come first, and where they are taken from."""

from base64 import b64encode

import cv2
import numpy as np
import pytest
from conftest import texture, write_png
from exports import write_export

from defects.deploy.model import RoiMeta, read_meta
from defects.deploy.similar import (
    NORMAL_IMAGES,
    NORMAL_PIXELS,
    Normals,
    load_normals,
    shrink,
    spread_positions,
)
from defects.files import array_archive
from defects.messages import UserError


def colour(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def field(seed: int, size: int = 150) -> np.ndarray:
    """Streaks of a direction and width of their own, uint8 [size, size]."""
    rng = np.random.default_rng(seed)
    along, across = rng.uniform(2, 9), rng.uniform(0.8, 2)
    noise = cv2.GaussianBlur(rng.normal(size=(2 * size, 2 * size)), (0, 0), along, sigmaY=across)
    turn = cv2.getRotationMatrix2D((size, size), rng.uniform(0, 180), 1)
    turned = cv2.warpAffine(noise, turn, (2 * size, 2 * size))[size // 2 : -size // 2, size // 2 : -size // 2]
    return np.clip(128 + 30 * turned / turned.std(), 0, 255).astype(np.uint8)


WIDE = field(0, 180)
PLANTED = WIDE[10:160, 10:160]
CHANGED = {
    "the same": PLANTED,
    "darker": (0.4 * PLANTED).astype(np.uint8),
    "mirrored": PLANTED[:, ::-1],
    "upside down": PLANTED[::-1],
    "turned": np.rot90(PLANTED),
    "shifted": WIDE[22:172, 2:152],
    "twice the size": cv2.resize(PLANTED, None, fx=2, fy=2),
    "with a scratch": cv2.line(PLANTED.copy(), (20, 30), (90, 70), 255, 2),
}


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    others = {f"other_{seed}": colour(field(seed)) for seed in range(1, 60)}
    return others | {"planted": colour(PLANTED)}


@pytest.mark.parametrize("change", CHANGED)
def test_similar_the_planted_image_comes_first(images, change):
    query = colour(np.ascontiguousarray(CHANGED[change]))
    assert Normals(images).find_most_similar(query, 3)[0] == "planted"


def test_similar_what_lies_outside_a_region_of_interest_does_not_count(tmp_path):
    """The surface in a corner decides, not the background around it."""
    meta = read_meta(write_export(tmp_path / "export"))
    inside = np.zeros(meta.image_size, np.uint8)
    inside[16:, 16:] = 255
    content = cv2.imencode(".png", inside)[1].tobytes()
    meta = meta.model_copy(update={"roi": RoiMeta(inside_png=b64encode(content).decode())})

    def before(surface: int, background: int) -> np.ndarray:
        image = field(background, 150)
        image[75:, 75:] = field(surface, 150)[75:, 75:]
        return colour(image)

    normals = {str(seed): before(seed, 20 + seed) for seed in range(6)}
    query = before(3, 25)
    assert Normals(normals, meta).find_most_similar(query, 1) == ["3"]
    assert Normals(normals).find_most_similar(query, 1) == ["5"]


def test_similar_the_order_of_the_normal_images_does_not_matter(images):
    forward, backward = Normals(images), Normals(dict(reversed(images.items())))
    for seed in range(1, 6):
        query = colour(field(seed)[:100])
        assert forward.find_most_similar(query, 5) == backward.find_most_similar(query, 5)


def test_similar_all_are_given_where_there_are_few():
    few = {"a": colour(texture(1)), "b": colour(texture(2)), "black": np.zeros((32, 32, 3), np.uint8)}
    assert Normals(few).find_most_similar(few["b"], 5) == ["b", *sorted({"a", "black"})]
    assert len(Normals(few).find_most_similar(few["black"], 5)) == 3


def test_similar_small_images_are_kept_as_they_are_and_large_ones_in_proportion():
    assert shrink(np.zeros((100, 50, 3), np.uint8)).shape == (100, 50, 3)
    assert shrink(np.zeros((4 * NORMAL_PIXELS, 2 * NORMAL_PIXELS, 3), np.uint8)).shape == (
        NORMAL_PIXELS,
        NORMAL_PIXELS // 2,
        3,
    )
    assert shrink(np.zeros((1000, 1, 3), np.uint8)).shape == (NORMAL_PIXELS, 1, 3)


def test_similar_positions_are_spread_over_all():
    assert spread_positions(5, 10) == [0, 1, 2, 3, 4]
    assert spread_positions(101, 3) == [0, 50, 100]
    assert spread_positions(0, 3) == []


def test_similar_the_exports_own_images(tmp_path):
    assert load_normals(tmp_path) is None
    with array_archive(tmp_path / "normals.npz") as add:
        add("line_1/a.png", colour(texture(1)))
        add("line_2/a.png", colour(texture(2)))
    assert load_normals(tmp_path).find_most_similar(colour(texture(2)), 1) == ["line_2/a.png"]


def test_similar_images_of_a_folder_replace_them(tmp_path):
    for place in range(NORMAL_IMAGES + 50):
        write_png(tmp_path / "deep" / f"{place:03d}.png", texture(place, 16))
    found = load_normals(tmp_path / "no export", tmp_path)
    assert len(found.names) == NORMAL_IMAGES
    assert (found.names[0], found.names[-1]) == ("deep/000.png", "deep/249.png")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x05\x06" + 18 * b"\0", None])
def test_similar_a_damaged_archive_is_named(tmp_path, content):
    path = tmp_path / "normals.npz"
    if content is None:
        with array_archive(path) as add:
            add("a", np.zeros((32, 32), np.uint8))  # no colours
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"normals\.npz is damaged: export again"):
        load_normals(tmp_path)


def test_similar_a_folder_has_to_hold_images(tmp_path):
    with pytest.raises(UserError, match="--normals .* is not a folder"):
        load_normals(tmp_path, tmp_path / "missing")
    with pytest.raises(UserError, match="holds no images"):
        load_normals(tmp_path, tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"broken\.png"):
        load_normals(tmp_path, tmp_path)
