"""Images in memory: scored as files are, by several threads, and refused where they are none."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import texture, write_png
from exports import CELLS, SIZE, write_export

from defects.data.images import read_image
from defects.deploy.frames import make_frame
from defects.deploy.model import ExportedModel, RoiMeta, load_model, read_meta
from defects.deploy.model import _open_openvino as open_openvino
from defects.deploy.prediction import predict, predict_images
from defects.messages import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(write_export(tmp_path_factory.mktemp("frames") / "export"))


def spotted(seed, shape=(40, 56)):
    """Of a size that the model does not see, with a bright spot for odd seeds."""
    image = texture(seed, 56)[: shape[0]] // 2
    if seed % 2:
        image[8:20, 12:28] = 255
    return image


def assert_same(one, other):
    assert one.score == other.score and one.labels == other.labels and one.regions == other.regions
    np.testing.assert_array_equal(one.maps, other.maps)


def test_predict_images_is_what_predict_makes_of_files(model, tmp_path):
    images = [spotted(seed) for seed in range(5)]
    files = [write_png(tmp_path / f"{seed}.png", image) for seed, image in enumerate(images)]
    of_files = list(predict(model, files, batch_size=2))
    colours = [np.repeat(image[..., None], 3, axis=2) for image in images]
    for arrays in (images, colours, np.stack(colours), [image[..., None] for image in images]):
        for of_file, of_array in zip(of_files, predict_images(model, arrays, batch_size=3), strict=True):
            assert_same(of_file, of_array)
            assert of_array.path is None
    verdicts = [prediction.verdict for prediction in of_files]
    assert verdicts == ["normal", "defect", "normal", "defect", "normal"]
    assert of_files[1].regions[0].kind == "defect" and of_files[1].maps.shape == (1, CELLS, CELLS)


def test_predict_images_does_not_change_them_and_takes_views(model):
    """Such as the RGB view of what OpenCV reads, whose strides are negative."""
    image = np.random.default_rng(0).integers(0, 255, (50, 40, 3), np.uint8)
    before = image.copy()
    view = predict_images(model, [image[:, ::-1, ::-1]])[0]
    assert_same(view, predict_images(model, [np.ascontiguousarray(image[:, ::-1, ::-1])])[0])
    np.testing.assert_array_equal(image, before)
    assert predict_images(model, []) == []


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_predict_images_in_threads_gives_the_same(model, runtime):
    if runtime == "openvino":  # it reads ONNX files too
        model = ExportedModel(model.path, model.meta, open_openvino(model.path, 1))
    images = [spotted(seed) for seed in range(24)]
    expected = predict_images(model, images)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            scored = list(pool.map(lambda image: predict_images(model, [image])[0], images))
            for one, other in zip(scored, expected, strict=True):
                assert_same(one, other)


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (
            np.zeros((8, 8)),
            "holds float64 values, the model takes uint8 from 0 to 255: give uint8; of values",
        ),
        (np.zeros((8, 8, 3), np.float32), "np.rint(255 * image).astype(np.uint8)"),
        (np.zeros((8, 8), bool), "holds bool values"),
        (np.zeros((8, 8), np.int64), "holds int64 values"),
        (np.zeros((8, 8), np.uint16), "holds uint16 values"),
        (
            np.zeros((8, 8, 4), np.uint8),
            "has the shape (8, 8, 4): give [height, width], or [height, width, 3]",
        ),
        (np.zeros((3, 8, 8), np.uint8), "has the shape (3, 8, 8)"),
        (np.zeros((2, 8, 8, 3), np.uint8), "has the shape (2, 8, 8, 3)"),
        (np.zeros(8, np.uint8), "has the shape (8,)"),
        (np.zeros((0, 8), np.uint8), "is empty, of shape (0, 8)"),
        (np.zeros((8, 0, 3), np.uint8), "is empty"),
        ([[0, 1], [1, 0]], "is of type list: give a NumPy array"),
        (None, "is of type NoneType"),
    ],
)
def test_predict_images_refuses_what_is_no_image(model, image, problem):
    with pytest.raises(UserError) as caught:
        predict_images(model, [spotted(0), image])
    assert str(caught.value).startswith("image 1 ") and problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"threshold": 50}, "threshold=50 is no probability: give a value from 0 to 1"),
        ({"threshold": float("nan")}, "threshold=nan is no probability"),
        ({"batch_size": 0}, "batch_size=0 scores nothing"),
        ({"batch_size": -1}, "batch_size=-1 scores nothing"),
    ],
)
def test_predict_images_refuses_options_that_mean_nothing(model, options, problem):
    with pytest.raises(UserError, match=problem):
        predict_images(model, [spotted(0)], **options)


def test_predict_images_takes_a_generator_and_memory_that_is_read_only(model):
    image = spotted(1)
    expected = predict_images(model, [image, image])
    image.flags.writeable = False
    predictions = predict_images(model, (image for _ in range(2)))
    for one, other in zip(predictions, expected, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3)])
def test_predict_images_refuses_one_image_in_place_of_several(model, shape):
    with pytest.raises(UserError, match=r"give \[image\] for a single one"):
        predict_images(model, np.zeros(shape, np.uint8))


def test_make_frame_16_bits_are_read_as_from_files(model, tmp_path):
    meta = model.meta.model_copy(update={"bits": 12})
    image = np.random.default_rng(0).integers(0, 4096, (SIZE, SIZE)).astype(np.uint16)
    path = write_png(tmp_path / "deep.png", image)
    np.testing.assert_array_equal(make_frame(image, meta).image, read_image(path, bits=12))


# --- regions of interest -----------------------------------------------------------------------------------


def with_roi(model, **roi):
    """The model with `roi`; it is told of the region, and does not look at it itself."""
    meta = model.meta.model_copy(update={"roi": RoiMeta(**roi)})
    return ExportedModel(model.path, meta, lambda images: model.run(np.ascontiguousarray(images[..., :3])))


def test_predict_images_a_foreground_is_found_and_marks_nothing_outside(model):
    image = np.zeros((64, 64), np.uint8)
    image[16:48, 16:48] = 210
    prediction = predict_images(with_roi(model, foreground="on_dark"), [image])[0]
    assert prediction.inside.shape == (SIZE, SIZE) and 0.1 < prediction.inside.mean() < 0.3
    (region,) = prediction.regions
    assert region.x >= 16 and region.x + region.width <= 48
    assert region.y >= 16 and region.y + region.height <= 48


def test_predict_images_masks_of_regions(model):
    masked = with_roi(model)
    images = [spotted(1), spotted(3)]
    inside = np.zeros(images[0].shape, bool)
    inside[:, 28:] = True
    predictions = predict_images(masked, images, roi_masks=[inside, ~inside])
    assert [len(prediction.regions) for prediction in predictions] == [0, 1]
    for masks, problem in (
        (None, "image 0 comes without a mask of its region of interest"),
        ([inside], "1 masks for 2 images"),
        ([inside, inside[:20]], "the region of interest of image 1 is 56x20, the image 56x40"),
        ([inside, np.zeros_like(inside)], "the region of interest leaves nothing of image 1"),
        (
            [inside, inside.tolist()],
            "the region of interest of image 1 is a list: give a NumPy array",
        ),
        ([inside, np.where(inside, 1, np.nan)], "image 1 holds float64 values: give a NumPy array of bool"),
        ([inside, inside[..., None]], r"image 1 has the shape \(40, 56, 1\): give \[height, width\]"),
    ):
        with pytest.raises(UserError, match=problem):
            predict_images(masked, images, roi_masks=masks)
    with pytest.raises(UserError, match="the model needs none"):
        predict_images(model, images, roi_masks=[inside, inside])


def test_predict_masks_of_regions_from_a_folder(model, tmp_path):
    masked = with_roi(model)
    files = [write_png(tmp_path / f"new/{seed}.png", spotted(seed)) for seed in (1, 3)]
    inside = np.zeros(spotted(1).shape, np.uint8)
    inside[:, 28:] = 255
    write_png(tmp_path / "rois/1.png", inside)
    right, missing = predict(masked, files, 8, roi_masks=tmp_path / "rois")
    assert not right.regions and not right.error
    assert "rois holds no mask for" in missing.error
    files = [write_png(tmp_path / f"new/{folder}/1.png", spotted(1)) for folder in "ab"]
    with pytest.raises(UserError, match=r"^1 masks of --roi .* are named like several images .*1.png\): put"):
        next(predict(masked, files, 8, roi_masks=tmp_path / "rois"))
    with pytest.raises(UserError, match="name a folder of masks, named like the images, with --roi"):
        next(predict(masked, files, 8))
    with pytest.raises(UserError, match="needs no masks; leave it out"):
        next(predict(model, files, 8, roi_masks=tmp_path / "rois"))


def test_predict_a_broken_region_in_model_json_is_one_line(model):
    with pytest.raises(UserError, match="model.json holds a broken region of interest"):
        predict_images(with_roi(model, inside_png="no picture"), [spotted(0)])
    assert read_meta(model.path.parent).roi is None
