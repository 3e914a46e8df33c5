"""What people call folders of normal images, of defects, of masks and of images to be scored."""

import re
from pathlib import Path
from typing import Literal

from defects.files import same_text

NameRole = Literal[
    "normal", "abnormal", "masks", "annotations", "test", "train", "validation", "images", "unknown"
]

NAMES_OF_ROLES: dict[NameRole, str] = {
    "normal": """
        good ok okay normal normals pass passed clean intact perfect defect_free defectfree no_defect
        no_defects nodefect non_defect non_defective nondefective not_defective ok_front
        정상 정상품 양품 합격 무결함
    """,
    "abnormal": """
        bad ng nok ko not_ok not_good defect defects defective abnormal abnormals anomaly anomalies
        anomalous fail failed fault faults faulty reject rejects rejected damaged scrap def_front
        불량 불량품 결함 결함품 비정상 이상 불합격
    """,
    "masks": """
        mask masks ground_truth groundtruth gt label labels segmentation segmentations defect_mask
        defect_masks segmentationclass
        마스크 라벨 레이블
    """,
    "annotations": "annotation annotations anns ann json jsons xml xmls 어노테이션 주석",
    "test": """
        test tests testing unlabelled unlabeled unknown unsorted new to_score predict inference
        시험 테스트 미분류
    """,
    "train": "train training 학습 훈련",
    "validation": "val valid validation dev 검증",
    "images": "image images img imgs jpegimages picture pictures photo photos 이미지 사진",
}
USUAL_NAMES = {role: frozenset(text.split()) for role, text in NAMES_OF_ROLES.items()}
SEPARATORS = re.compile(r"[\s\-.]+")
YEAR_AT_END = re.compile(r"_?(?:19|20)\d\d$")  # train2017
NUMBER_IN_FRONT = re.compile(r"^\d+_+")  # 0_good, 1_bad
WHAT_IS_IN_IT = re.compile(r"_(images?|imgs?|pictures?|photos?|samples?|parts?|products?|data|이미지|사진)$")


def tell_role(folder: Path) -> NameRole:
    """What the name of a folder says of its images; `unknown` for any other name."""
    name = SEPARATORS.sub("_", same_text(folder.name).casefold())
    name = NUMBER_IN_FRONT.sub("", name)
    for candidate in (name, WHAT_IS_IN_IT.sub("", name), YEAR_AT_END.sub("", name)):
        for role, names in USUAL_NAMES.items():
            if candidate in names:
                return role
    return "unknown"


def names_defect(file: Path) -> bool:
    """Whether a word of a file's name says that it shows a defect: ng_001.png, part 3 bad.jpg."""
    words = re.split(r"[\W_]+|(?<=[a-z])(?=\d)", same_text(file.stem).casefold())
    text = SEPARATORS.sub("_", same_text(file.stem).casefold())
    is_negated = any(len(name) > 4 and name in text for name in USUAL_NAMES["normal"] if "defect" in name)
    return not is_negated and not USUAL_NAMES["abnormal"].isdisjoint(words)
