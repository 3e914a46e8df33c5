"""The segmenter: shapes for any decoder and size, what its losses learn from, what it refuses."""

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import options_for
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score

from defects.config_schema import Config
from defects.data.datasets import to_device, training_loader
from defects.data.fold_files import load_training_rows
from defects.data.labels import Labels
from defects.messages import UserError
from defects.models import build_detector
from defects.stages import ensure_tables

SQUARE = (slice(8, 24), slice(40, 56))  # rows, columns of the defect of a batch


@pytest.fixture
def build(make_config, tmp_path):
    """build(size, classes, *overrides, **options) -> segmenter over an untrained test_efficientnet."""

    def make(size=(32, 64), classes=(), *overrides, **options):
        torch.manual_seed(0)
        return build_detector(configured(make_config, tmp_path, size, classes, *overrides, **options))

    return make


def configured(make_config, root, size=(32, 64), classes=(), *overrides, **options) -> Config:
    settings = [f"data.image_size={list(size)}", f"data.classes={list(classes)}", "model.name=segmenter"]
    config = make_config(root, *settings, *overrides)
    config.model.options = options
    return config


def batch(known=(1, 1), classes=1, size=(32, 64)):
    """Noise with a bright square of the first class in every second image."""
    torch.manual_seed(0)
    images, masks = 0.4 * torch.rand(len(known), 3, *size), torch.zeros(len(known), classes, *size)
    images[::2, :, *SQUARE], masks[::2, 0, *SQUARE] = 1, 1
    label = masks.amax((2, 3))
    label = torch.cat([label, label.amax(1, keepdim=True)], 1) if classes > 1 else label
    known = torch.tensor(known, dtype=torch.float32)[:, None]
    return {"image": images, "mask": masks, "masked": known, "label": label}


def steps(detector, learnt, count, lr=0.01):
    """The losses of `count` steps on one batch."""
    optimizer = torch.optim.Adam(detector.parameters(), lr)
    losses = []
    for _ in range(count):
        loss = detector.training_loss(learnt)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "decoder", ["unet", "unetplusplus", "manet", "linknet", "fpn", "deeplabv3plus", "upernet", "segformer"]
)
@pytest.mark.parametrize("encoder", ["test_efficientnet", "test_convnext"])
def test_segmenter_every_decoder_maps_whole_images_of_odd_size(build, decoder, encoder):
    size, backbone = (65, 97), f"model.backbone.name={encoder}"
    detector = build(size, ["1", "2"], backbone, decoder=decoder).eval()
    with torch.inference_mode():
        score, maps = detector(torch.rand(2, 3, *size))
    assert score.shape == (2, 3) and maps.shape == (2, 2, *size)
    assert maps.min() >= 0 and maps.max() <= 1


@pytest.mark.parametrize(("classes", "targets"), [([], 1), (["1"], 2), (["1", "2", "3", "4"], 5)])
def test_segmenter_a_score_for_every_target_and_a_map_for_every_class(build, classes, targets):
    detector = build(classes=classes).eval()
    score, maps = detector(torch.rand(3, 3, 32, 64))
    assert score.shape == (3, targets) == (3, len(detector.targets)) and detector.targets[-1] == "defect"
    assert maps.shape == (3, max(1, len(classes)), 32, 64)
    if classes:  # whether there is any defect: the score of the surest class
        assert torch.equal(score[:, -1], score[:, :-1].amax(1))


def test_segmenter_the_score_is_the_mean_logit_of_the_surest_pixels(build):
    detector = build(top_share=0.25)
    logits = torch.arange(8.0).view(1, 1, 2, 4)
    assert detector.score(logits).tolist() == [[6.5]]


class Brightness(torch.nn.Module):
    """In place of the network: the logit of a pixel is its brightness."""

    def forward(self, images):
        return images.mean(1, keepdim=True)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (65, 40)])
def test_segmenter_the_map_lies_on_the_image(build, size):
    detector = build(size)
    detector.network = Brightness()
    images = torch.zeros(1, 3, *size)
    images[..., -1, -1], images[..., 0, 5] = 1, 0.5
    _, maps = detector(images)
    assert maps.shape == (1, 1, *size)
    order = maps.flatten().argsort(descending=True)[:2].tolist()
    assert order == [size[0] * size[1] - 1, 5]


@pytest.mark.parametrize("loss", ["bce_dice", "lovasz", "focal"])
@pytest.mark.parametrize("classes", [1, 3])
def test_segmenter_each_loss_learns_where_the_defect_is(build, loss, classes):
    names = [str(number) for number in range(classes)] if classes > 1 else []
    detector, learnt = build(classes=names, loss=loss).train(), batch(classes=classes)
    losses = steps(detector, learnt, 30)
    assert losses[-1] < 0.5 * losses[0]
    with torch.inference_mode():
        maps = detector.logits(learnt["image"]).sigmoid()  # with the statistics of the batch
    inside = maps[0, 0][*SQUARE].mean()
    assert inside > maps[0, 0].mean() + 0.2 and inside > maps[1].mean() + 0.2


def test_segmenter_images_without_known_mask_teach_nothing(build):
    detector = build().train()
    unknown = detector.training_loss(batch(known=(0, 0)))
    unknown["loss"].backward()
    assert unknown["loss"] == 0 and unknown["score"].shape == (2, 1)
    assert all((each.grad == 0).all() for each in detector.parameters() if each.grad is not None)
    both, wrong = batch(known=(1, 0)), batch(known=(1, 0))
    wrong["mask"][1] = 1
    assert detector.training_loss(both)["loss"] == detector.training_loss(wrong)["loss"] > 0


def test_segmenter_validation_looks_at_known_masks_only(build):
    detector = build().eval()
    mixed, wrong = batch(known=(1, 0)), batch(known=(1, 0))
    wrong["mask"][1] = 1
    found, other = detector.validation(mixed), detector.validation(wrong)
    assert found["loss"] == other["loss"] and found["dice"] == other["dice"]
    assert found["score"].shape == (2, 1)
    assert detector.validation(batch(known=(0, 0))).keys() == {"score"}


@pytest.mark.parametrize(
    ("share", "dice"), [((0, 0), 0.0), ((0, 1), 0.5), ((1, 1), 1.0)], ids=["none", "one", "both"]
)
def test_segmenter_validation_dice_counts_empty_pairs(build, share, dice, monkeypatch):
    """The first image is marked, the second is not; `share`: whether each is answered rightly."""
    detector, learnt = build().eval(), batch()
    right = 20 * learnt["mask"] - 10
    logits = torch.stack([right[i] if good else -right[i] for i, good in enumerate(share)])
    monkeypatch.setattr(detector, "logits", lambda images: logits)
    assert detector.validation(learnt)["dice"].item() == pytest.approx(dice)


@pytest.mark.parametrize("encoder", ["test_efficientnet", "test_convnext"])
@pytest.mark.parametrize("decoder", ["unet", "deeplabv3plus"])
def test_segmenter_the_weights_file_is_in_the_encoder(build, tmp_path, encoder, decoder):
    torch.manual_seed(5)
    source = timm.create_model(encoder, num_classes=0)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    weights = f"model.backbone={{name: {encoder}, weights: {tmp_path / 'weights.safetensors'}}}"
    images, detector = torch.rand(1, 3, 64, 64), build((32, 64), (), weights, decoder=decoder)
    with torch.inference_mode():
        expected = source.eval().forward_intermediates(images, intermediates_only=True)
        found = detector.network.encoder.model.eval()(images)
    # The last stages of a dilated encoder have other shapes.
    pairs = [
        pair for pair in zip(found[::-1], expected[::-1], strict=False) if pair[0].shape == pair[1].shape
    ]
    assert len(pairs) >= 2 and all(torch.allclose(one, other, atol=1e-5) for one, other in pairs)


def test_segmenter_a_saved_state_scores_the_same(build, tmp_path):
    detector = build(classes=["1", "2"]).train()
    steps(detector, batch(classes=2), 2)
    torch.save(detector.state_dict(), tmp_path / "state.pt")
    other = build(classes=["1", "2"])
    images = torch.rand(2, 3, 32, 64)
    before = other.eval()(images)[0]
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    expected, found = detector.eval()(images), other.eval()(images)
    assert torch.equal(expected[0], found[0]) and torch.equal(expected[1], found[1])
    assert not torch.allclose(before, found[0])


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        ([], {"decoder": "unett"}, "model.options.decoder=unett: the decoders are unet, "),
        ([], {"decoder": "dpt"}, "model.options.decoder=dpt: the decoders are unet, "),
        ([], {"decoder": "pan"}, "does not suit the decoder pan for images of 32x32: "),
        ([], {"decoder_options": {"channels": 3}}, "does not suit the decoder unet .*channels"),
        ([], {"los": "focal"}, "model.options: unknown key los, did you mean loss?"),
        (["model.backbone.name=test_vit"], {}, "model.backbone.name=test_vit .*does not suit the decoder"),
        (["model.backbone.name=test_efficientne"], {}, "timm has no such model; near: test_efficientnet"),
        (["model.backbone=null"], {}, "model.backbone is missing"),
    ],
)
def test_segmenter_what_cannot_be_built_is_told_in_one_line(build, overrides, options, message):
    with pytest.raises(UserError, match=message):
        build((32, 32), (), *overrides, **options)


# --- data that only tells defective from normal, with mask files ------------------------------------------


@pytest.mark.parametrize("symmetries", ["rotations", "flips"])
def test_segmenter_masks_turn_with_the_images(make_dataset, make_config, symmetries):
    """The squares are the only white pixels, whatever the planned rotation."""
    settings = (f"data.symmetries={symmetries}", "split.balance.ratio=2")  # several copies of each defect
    config = configured(make_config, make_dataset(), (32, 32), (), *settings)
    table = ensure_tables(config).folds
    rows = load_training_rows(config, "0").merge(table, on="image_id")
    assert (rows["angle"] % 90 != 0).any() == (symmetries == "rotations")
    for loaded in training_loader(config, rows, Labels(masks=True)):
        found = to_device(loaded, torch.device("cpu"))
        assert found["mask"].shape == (len(found["image"]), 1, 32, 32)
        white = (found["image"] > 0.999).all(1, keepdim=True)
        assert ((found["mask"] > 0) | ~white).all()
        assert torch.equal(found["mask"].amax((1, 2, 3)), found["label"][:, 0])


def test_segmenter_mask_files_train_it_and_the_image_score_is_that_of_the_masks(
    make_dataset, config_file, run_script
):
    sections = {"model": {"name": "segmenter", "backbone": {"name": "test_efficientnet", "weights": "none"}}}
    path = config_file(make_dataset(), **sections, train={"epochs": 8, "lr": 0.01}, infer={"tta": False})
    for command in (["train.py", "--fold", "all"], ["infer.py"], ["report.py"]):
        outcome = run_script(command[0], *options_for(command[0], path), *command[1:])
        assert outcome.code == 0, outcome.stderr
    folder = path.parent / "output" / "tiny" / "fold0"
    maps, oof = np.load(folder / "oof_maps.npz"), pd.read_csv(folder / "oof.csv")
    assert set(maps.files) == set(oof["image_id"]) and set(oof["target"]) == {"defect"}
    surest = [maps[name].max() / 255 for name in oof["image_id"]]
    assert maps[oof["image_id"][0]].shape == (32, 32)
    # One pixel of 32 x 32 is the thousandth that the score is made of.
    assert np.allclose(oof["probability"], surest, atol=0.005)
    assert roc_auc_score(oof["label"], oof["score"]) > 0.9
