"""Public data sets: what their configurations list of trees that are built as theirs."""

from pathlib import Path

import numpy as np
import pytest
from conftest import defective, raising, texture, write_masks, write_pictures, write_png
from listings import listing_error

from defects.config import load_config
from defects.config_schema import ROOT
from defects.data.folder_scan import list_categories
from defects.data.folds import find_stated_groups
from defects.data.images import read_image
from defects.data.layouts import list_data
from defects.data.layouts.magnetic_tile import number_tiles
from defects.data.mask_files import read_mask


def _config(name: str, root, *settings: str):
    return load_config(None, [f"data.root={root}", *settings], name, needs_model=False)


def _labels(table) -> dict:
    return dict(zip(table["image_id"], table["label"], strict=True))


def _split(listing, name: str):
    return listing.images[listing.images["split"] == name]


def _groups(config, listing) -> dict:
    train = _split(listing, "train")
    return dict(zip(train["image_id"], find_stated_groups(train, config.split), strict=True))


def _write_box(path, kind: str, image: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<annotation><filename>{image}</filename><size><width>32</width><height>32</height></size>"
        f"<object><name>{kind}</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        "</object></annotation>"
    )


# --- MVTec LOCO, MVTec AD 2, BTAD: the mvtec layout ---------------------------------------------------------


def test_mvtec_loco_unites_the_masks_of_an_image_and_learns_from_validation(tmp_path):
    root = tmp_path / "breakfast_box"
    write_pictures(root, "train/good/000.png", "validation/good/000.png", "test/good/000.png")
    write_pictures(root, "test/logical_anomalies/000.png", "test/structural_anomalies/000.png")
    for name in ("logical_anomalies/000/000", "logical_anomalies/000/001", "structural_anomalies/000/000"):
        write_masks(root, f"ground_truth/{name}.png")
    (root / "defects_config.json").write_text("[]")
    config = _config("mvtec_loco", root)
    listing = list_data(config.data)
    assert _labels(_split(listing, "train")) == {"train/good/000.png": 0, "validation/good/000.png": 0}
    answers = listing.answers.set_index("image_id")
    assert answers["label"].tolist() == [0, 1, 1]
    folder = "ground_truth/logical_anomalies/000"
    assert answers["mask_path"]["test/logical_anomalies/000.png"] == f"{folder}/000.png|{folder}/001.png"


def test_mvtec_ad_2_takes_the_public_test_images_and_counts_the_others(tmp_path):
    root = tmp_path / "can"
    write_pictures(root, "train/good/000_regular.png", "train/good/000_overexposed.png")
    write_pictures(root, "validation/good/000_regular.png", "test_private/000_regular.png")
    write_pictures(root, "test_private_mixed/000_mixed.png", "test_private_mixed/001_mixed.png")
    write_pictures(root, "test_public/good/000_regular.png", "test_public/bad/000_shift_1.png")
    write_masks(root, "test_public/ground_truth/bad/000_shift_1_mask.png")
    config = _config("mvtec_ad_2", root)
    listing = list_data(config.data)
    assert len(_split(listing, "train")) == 3
    answers = listing.answers.set_index("image_id")
    assert answers["label"].to_dict() == {
        "test_public/bad/000_shift_1.png": 1,
        "test_public/good/000_regular.png": 0,
    }
    mask = answers["mask_path"]["test_public/bad/000_shift_1.png"]
    assert mask == "test_public/ground_truth/bad/000_shift_1_mask.png"
    assert any("2 images of test_private_mixed have no labels" in note for note in listing.notes)
    groups = _groups(config, listing)
    assert groups["train/good/000_regular.png"] == groups["train/good/000_overexposed.png"]
    assert groups["train/good/000_regular.png"] != groups["validation/good/000_regular.png"]


def test_btad_has_categories_of_ok_and_ko(tmp_path):
    root = tmp_path / "BTech_Dataset_transformed"
    write_pictures(root, "01/train/ok/0000.png", "01/test/ok/0000.png", "01/test/ko/0000.png")
    write_masks(root, "01/ground_truth/ko/0000.png")
    (root / "02/train").mkdir(parents=True)
    assert list_categories(_config("btad", root).data.root) == ["01", "02"]
    listing = list_data(_config("btad", root / "01").data)
    assert _labels(listing.answers) == {"test/ko/0000.png": 1, "test/ok/0000.png": 0}
    assert listing.answers["mask_path"].tolist() == ["ground_truth/ko/0000.png", ""]


# --- VisA ---------------------------------------------------------------------------------------------------


@pytest.fixture
def visa(tmp_path):
    write_pictures(tmp_path, *(f"candle/Data/Images/Normal/000{i}.JPG.png" for i in range(3)))
    for path in (tmp_path / "candle/Data/Images/Normal").iterdir():
        path.rename(path.with_name(path.name.removesuffix(".png")))
    write_pictures(tmp_path, "candle/Data/Images/Anomaly/000.JPG")
    write_masks(tmp_path, "candle/Data/Masks/Anomaly/000.png")
    (tmp_path / "pcb1/Data/Images/Normal").mkdir(parents=True)
    images = "candle/Data/Images"
    for protocol, split in (("1cls", "test"), ("2cls_highshot", "train")):
        lines = [
            "object,split,label,image,mask",
            f"candle,train,normal,{images}/Normal/0000.JPG,",
            f"candle,train,normal,{images}/Normal/0001.JPG,",
            f"candle,test,normal,{images}/Normal/0002.JPG,",
            f"candle,{split},anomaly,{images}/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png",
            "pcb1,train,normal,pcb1/Data/Images/Normal/0000.JPG,",
        ]
        path = tmp_path / f"split_csv/{protocol}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines))
    return tmp_path


def test_visa_follows_the_split_of_one_class(visa):
    assert list_categories(_config("visa", visa).data.root) == ["candle", "pcb1"]
    listing = list_data(_config("visa", visa / "candle").data)
    assert _split(listing, "train")["label"].tolist() == [0, 0]
    assert _labels(listing.answers) == {
        "Data/Images/Anomaly/000.JPG": 1,
        "Data/Images/Normal/0002.JPG": 0,
    }
    assert "Data/Masks/Anomaly/000.png" in listing.answers["mask_path"].tolist()


def test_visa_has_defects_to_learn_from_in_the_split_of_two_classes(visa):
    config = _config("visa", visa / "candle", "data.visa.protocol=2cls_highshot")
    train = _split(list_data(config.data), "train")
    assert train.set_index("image_id")["mask_path"]["Data/Images/Anomaly/000.JPG"]


def test_visa_names_what_is_missing(visa):
    assert "--category" in listing_error(_config("visa", visa).data)
    table = visa / "split_csv/1cls.csv"
    table.write_text(table.read_text().replace("Normal/0001", "Normal/0009"))
    assert "0001.JPG" in listing_error(_config("visa", visa / "candle").data)
    table.unlink()
    assert f"{table} does not exist" in listing_error(_config("visa", visa / "candle").data)


# --- KolektorSDD, KolektorSDD2, DAGM: labelled by masks -----------------------------------------------------


def _write_black(root, *names: str) -> None:
    for name in names:
        write_png(root / name, np.zeros((32, 32), np.uint8))


def test_kolektor_sdd_labels_by_masks_and_groups_by_commutator(tmp_path):
    write_pictures(tmp_path, "kos01/Part0.jpg", "kos01/Part1.jpg", "kos02/Part0.jpg")
    _write_black(tmp_path, "kos01/Part0_label.bmp", "kos02/Part0_label.bmp")
    write_masks(tmp_path, "kos01/Part1_label.bmp")
    config = _config("kolektor_sdd", tmp_path)
    listing = list_data(config.data)
    assert listing.answers is None
    assert _labels(listing.images) == {"kos01/Part0.jpg": 0, "kos01/Part1.jpg": 1, "kos02/Part0.jpg": 0}
    assert listing.images["mask_path"].tolist() == ["", "kos01/Part1_label.bmp", ""]
    assert list(_groups(config, listing).values()) == ["kos01", "kos01", "kos02"]


def test_kolektor_sdd2_keeps_test_labels_apart_and_leaves_out_the_copy(tmp_path):
    write_pictures(tmp_path, "train/10000.png", "train/10301.png", "train/10301 (copy).png")
    write_pictures(tmp_path, "test/20000.png", "test/20001.png")
    _write_black(tmp_path, "train/10000_GT.png", "test/20000_GT.png")
    write_masks(tmp_path, "train/10301_GT.png", "train/10301_GT (copy).png", "test/20001_GT.png")
    listing = list_data(_config("kolektor_sdd2", tmp_path).data)
    assert _labels(_split(listing, "train")) == {"train/10000.png": 0, "train/10301.png": 1}
    assert _split(listing, "test")["label"].isna().all()
    assert _labels(listing.answers) == {"test/20000.png": 0, "test/20001.png": 1}
    assert any("named as copies" in note for note in listing.notes)


def test_dagm_has_masks_of_defects_alone_in_a_folder_of_labels(tmp_path):
    for split in ("Train", "Test"):
        write_pictures(tmp_path, f"Class1/{split}/0001.PNG", f"Class1/{split}/0576.PNG")
        write_masks(tmp_path, f"Class1/{split}/Label/0576_label.PNG")
        (tmp_path / f"Class1/{split}/Label/Labels.txt").write_text("1\n576\t1\t0576.PNG\t0\t0576_label.PNG\n")
    assert list_categories(_config("dagm", tmp_path).data.root) == ["Class1"]
    assert "--category" in listing_error(_config("dagm", tmp_path).data)
    listing = list_data(_config("dagm", tmp_path / "Class1").data)
    assert _labels(_split(listing, "train")) == {"Train/0001.PNG": 0, "Train/0576.PNG": 1}
    assert _labels(listing.answers) == {"Test/0001.PNG": 0, "Test/0576.PNG": 1}
    assert listing.answers["mask_path"].tolist() == ["", "Test/Label/0576_label.PNG"]


def test_labelled_by_masks_without_any_mark_is_refused(tmp_path):
    write_pictures(tmp_path, "train/1.png", "test/2.png")
    assert "no mask marks anything" in listing_error(_config("kolektor_sdd2", tmp_path).data)


# --- casting: a folder for each class -----------------------------------------------------------------------


def test_casting_reads_the_class_from_the_folder(tmp_path):
    for split in ("train", "test"):
        write_pictures(tmp_path, f"{split}/ok_front/cast_ok_0_1.jpeg", f"{split}/def_front/cast_def_0_1.jpeg")
    listing = list_data(_config("casting", tmp_path).data)
    assert _labels(_split(listing, "train")) == {
        "train/def_front/cast_def_0_1.jpeg": 1,
        "train/ok_front/cast_ok_0_1.jpeg": 0,
    }
    assert sorted(listing.answers["label"]) == [0, 1]


def test_class_folders_without_the_normal_one_are_refused(tmp_path):
    write_pictures(tmp_path, "train/def_front/1.jpeg", "test/def_front/1.jpeg")
    assert "lacks the folder ok_front" in listing_error(_config("casting", tmp_path).data)


# --- NEU-DET, NEU-Seg, GC10-DET: annotations ----------------------------------------------------------------


def test_neu_det_has_boxes_of_six_kinds(tmp_path):
    kinds = _config("neu_det", tmp_path).data.classes
    for kind in kinds:
        write_pictures(
            tmp_path, f"train/images/{kind}/{kind}_1.jpg", f"validation/images/{kind}/{kind}_9.jpg"
        )
        _write_box(tmp_path / f"train/annotations/{kind}_1.xml", kind, f"{kind}_1.jpg")
    listing = list_data(_config("neu_det", tmp_path).data)
    assert sorted(_split(listing, "train")["kind"]) == sorted(kinds)
    assert len(_split(listing, "test")) == 6


def test_neu_seg_has_label_images_of_three_kinds(tmp_path):
    for number in (1, 2, 3):
        image, mask = defective(number)
        write_png(tmp_path / f"images/training/00000{number}.jpg", image)
        write_png(tmp_path / f"annotations/training/00000{number}.png", mask // 255 * number)
    write_pictures(tmp_path, "images/test/000001.jpg")
    listing = list_data(_config("neu_seg", tmp_path).data)
    assert _split(listing, "train")["kind"].tolist() == ["1", "2", "3"]


def test_gc10_det_corrects_a_class_and_leaves_out_pictures_of_one_name(tmp_path):
    write_pictures(tmp_path, "10/img_1.jpg", "1/img_2.jpg", "2/img_3.jpg", "3/img_3.jpg", "4/img_4.jpg")
    (tmp_path / "5").mkdir()
    (tmp_path / "5/img_4.jpg").write_bytes((tmp_path / "4/img_4.jpg").read_bytes())
    kinds = {"img_1": "10_yaozhed", "img_2": "1_chongkong", "img_3": "2_hanfeng", "img_4": "4_shuiban"}
    for name, kind in kinds.items():
        _write_box(tmp_path / f"lable/{name}.xml", kind, f"{name}.jpg")
    listing = list_data(_config("gc10_det", tmp_path).data)
    kind_of = dict(zip(listing.images["image_id"], listing.images["kind"], strict=True))
    assert kind_of == {"1/img_2.jpg": "1_chongkong", "10/img_1.jpg": "10_yaozhe", "4/img_4.jpg": "4_shuiban"}
    assert any("1 copies" in note and "5/img_4.jpg" in note for note in listing.notes)
    assert any("2/img_3.jpg" in note and "3/img_3.jpg" in note for note in listing.notes)


# --- ELPV ---------------------------------------------------------------------------------------------------


def _write_elpv(root, labels: str):
    write_pictures(root, *(f"images/cell000{i}.png" for i in range(1, 5)))
    (root / "labels.csv").write_text(labels)
    return root


ELPV_LABELS = """images/cell0001.png  1.0                 mono
images/cell0002.png  0.6666666666666666  poly
images/cell0003.png  0.3333333333333333  poly
images/cell0004.png  0.0                 mono
"""


@pytest.mark.parametrize("folder", [".", "src/elpv_dataset/data"])
def test_elpv_counts_probable_defects_as_defects(tmp_path, folder):
    _write_elpv(tmp_path / folder, ELPV_LABELS)
    listing = list_data(_config("elpv", tmp_path).data)
    assert listing.images["label"].tolist() == [1, 1, 0, 0]
    assert listing.images["kind"].tolist() == ["mono", "poly", "", ""]
    assert any(note.startswith("2 cells are neither") for note in listing.notes)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (ELPV_LABELS.replace("0.0", "none"), "line 4 is 'images/cell0004.png  none"),
        (ELPV_LABELS.replace("0.0", "1.5"), "line 4 has the probability 1.5"),
        (ELPV_LABELS.partition("images/cell0004")[0], "does not list images/cell0004.png"),
    ],
)
def test_elpv_names_what_is_wrong_in_its_labels(tmp_path, labels, problem):
    assert problem in listing_error(_config("elpv", _write_elpv(tmp_path, labels)).data)


# --- magnetic tiles -----------------------------------------------------------------------------------------


def test_magnetic_tile_raw_groups_photographs_of_a_tile(tmp_path):
    names = ["MT_Blowhole/Imgs/exp1_num_4727", "MT_Blowhole/Imgs/exp2_num_4748", "MT_Free/Imgs/exp1_num_4944"]
    for number, name in enumerate(names):
        image, mask = defective(number)
        write_png(tmp_path / f"{name}.jpg", image)
        write_png(tmp_path / f"{name}.png", np.zeros_like(mask) if "Free" in name else mask)
    config = _config("magnetic_tile_raw", tmp_path)
    listing = list_data(config.data)
    assert _labels(listing.images) == {
        "tile4727/MT_Blowhole/exp1_num_4727.jpg": 1,
        "tile4727/MT_Blowhole/exp2_num_4748.jpg": 1,
        "tile4944/MT_Free/exp1_num_4944.jpg": 0,
    }
    assert listing.images["kind"].tolist() == ["Blowhole", "Blowhole", ""]
    assert listing.images["mask_path"].tolist()[0] == "MT_Blowhole/Imgs/exp1_num_4727.png"
    assert list(_groups(config, listing).values()) == ["tile4727", "tile4727", "tile4944"]


def test_number_tiles_joins_close_frames_whatever_the_exposure():
    names = ["exp3_num_36246.jpg", "exp6_num_36280.jpg", "exp1_num_36290.jpg", "exp2_num_36302.jpg"]
    assert set(number_tiles(names)) == {36246}
    assert number_tiles(["exp6_num_4841.jpg", "exp1_num_4944.jpg"]) == [4841, 4944]


def test_magnetic_tile_raw_names_what_is_missing(tmp_path):
    write_pictures(tmp_path, "MT_Crack/Imgs/a.jpg", "MT_Free/Imgs/exp1_num_1.jpg")
    assert "MT_Crack/a.jpg" in listing_error(_config("magnetic_tile_raw", tmp_path).data)
    (tmp_path / "MT_Free").rename(tmp_path / "elsewhere")
    assert "lacks MT_Free" in listing_error(_config("magnetic_tile_raw", tmp_path).data)


# --- AITEX --------------------------------------------------------------------------------------------------


@pytest.fixture
def aitex(tmp_path):
    """Two defective strips, one of them without a mask, and a normal one that ends in white padding."""
    strip = np.tile(texture(0, 256), 16)
    normal = np.tile(texture(1, 256), 16)
    normal[:, 3072:] = 255
    for part, columns in (("mask1", slice(10, 20)), ("mask2", slice(1020, 1030))):
        mask = np.zeros_like(strip)
        mask[5:9, columns] = 255
        write_png(tmp_path / f"Mask_images/0044_019_04_{part}.png", mask)
    write_png(tmp_path / "Defect_images/0044_019_04.png", strip)
    write_png(tmp_path / "Defect_images/0100_025_08.png", strip)
    write_png(tmp_path / "NODefect_images/2306881-210020u/0001_000_05.png", normal)
    return tmp_path


def test_aitex_is_divided_into_pieces_with_their_masks(aitex):
    config = _config("aitex", aitex)
    listing = list_data(config.data)
    images = listing.images.set_index("image_id")
    marked = [f"defect_images/0044_019_04_b0044_{place}.png" for place in (0, 1)]
    unmarked = [f"normal_images/0044_019_04_b0044_{place}.png" for place in (2, 3)]
    fabric = [f"normal_images/2306881-210020u/0001_000_05_g0001_{place}.png" for place in (0, 1, 2)]
    assert images["label"].to_dict() == dict.fromkeys(marked, 1) | dict.fromkeys(unmarked + fabric, 0)
    mask = read_mask(aitex / images["mask_path"][marked[1]])
    assert mask.shape == (256, 1024) and mask.sum() == 4 * 6 and mask[5:9, :6].all()
    piece = read_image(aitex / images["path"][fabric[0]], (256, 1024))
    whole = read_image(aitex / "NODefect_images/2306881-210020u/0001_000_05.png", (256, 4096))
    assert (piece == whole[:, :1024]).all()
    assert set(_groups(config, listing).values()) == {"b0044", "g0001"}
    assert any("0100_025_08.png" in note for note in listing.notes)
    assert any("0001_000_05_g0001_3.png" in note for note in listing.notes)


def test_aitex_is_divided_once_and_again_when_strips_change(aitex, capsys):
    config = _config("aitex", aitex)
    first = list_data(config.data)
    assert "dividing 3 strips" in capsys.readouterr().out
    assert list_data(config.data).images.equals(first.images)
    assert capsys.readouterr().out == ""
    write_png(aitex / "NODefect_images/2306881-210020u/0002_000_05.png", np.tile(texture(2, 256), 16))
    assert len(list_data(config.data).images) == len(first.images) + 4


def test_aitex_mask_of_another_size_is_refused(aitex):
    write_png(aitex / "Mask_images/0044_019_04_mask1.png", np.full((256, 100), 255, np.uint8))
    message = listing_error(_config("aitex", aitex).data)
    assert "100x256, its strip 4096x256" in message
    assert not (aitex / "pieces").exists()


def test_aitex_in_a_folder_that_is_read_only_is_refused(aitex, monkeypatch):
    monkeypatch.setattr(Path, "rename", raising(OSError(30, "Read-only file system")))
    message = listing_error(_config("aitex", aitex).data)
    assert "pieces cannot be written (Read-only file system)" in message
    assert f"copy {aitex} to where" in message


@pytest.mark.parametrize("name", ["aitex", "elpv"])
def test_sets_in_the_defect_normal_layout_are_read_as_well(make_dataset, name):
    root = make_dataset(defects=1, normals=1, tests=1)
    images = list_data(_config(name, root).data).images
    assert images["image_id"].tolist() == [
        "normal_images/normal_0.png",
        "defect_images/defect_0.png",
        "test_0.png",
    ]


def test_every_shipped_data_set_has_a_schema_line_and_a_paragraph():
    page = (ROOT / "docs/public_sets.md").read_text(encoding="utf-8")
    page += (ROOT / "docs/data.md").read_text(encoding="utf-8")
    for path in (ROOT / "configs/data").glob("*.yaml"):
        if "# Written by src/start.py" in path.read_text(encoding="utf-8"):
            continue  # of the person who runs these tests
        assert path.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=")
        assert f"`{path.name}`" in page, path.name
