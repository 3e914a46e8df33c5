"""Images as pooled features of a frozen network, one vector each, for classifiers that fit in seconds."""

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from defects.config_schema import Config
from defects.data.datasets import DeviceBatches
from defects.models.features import Features
from defects.models.inside import split_inside

INVERSE_PENALTY = 0.01  # scikit-learn's C; thirty defects against hundreds of features


@torch.inference_mode()
def describe_images(config: Config, images: pd.DataFrame) -> np.ndarray:
    """float32 [N, D] of rows of images.csv: mean, deviation and maximum of each channel over the image.

    The channels are those of strides 8 and 16 of the configuration's network. The images are upright and of
    data.image_size. Raises UserError where the configuration names no network.
    """
    features = Features(config.model.backbone, None, config.data.image_size)
    batches = DeviceBatches(config, images, torch.device("cpu"))
    vectors = []
    for batch in tqdm(batches, "features", disable=None):
        colours, _ = split_inside(batch["image"])
        vectors.append(_pool(features(colours)))
    return np.concatenate(vectors)


def _pool(maps: list[torch.Tensor]) -> np.ndarray:
    flat_maps = [layer.flatten(2) for layer in maps]
    parts = [torch.cat([layer.mean(2), layer.std(2), layer.amax(2)], 1) for layer in flat_maps]
    return torch.cat(parts, 1).numpy()


def fit_pooled_classifier(features: np.ndarray, labels: np.ndarray) -> Pipeline:
    """Logistic regression on standardised features [N, D] for labels 0/1 [N]."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_PENALTY, max_iter=1000))
    return model.fit(features, labels)
