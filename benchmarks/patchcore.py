"""PatchCore beside anomalib's: choosing the coreset, fitting from files, scoring, and AUROC, in one run.

The same backbone weights, generated images of 512 px (seen at 256), layers and ratio on both sides; other
images in every repeat. Every measurement is a process of its own, the two sides in turn, so that a noisy
neighbour hits both. anomalib
comes from an environment of its own: --anomalib PATH/TO/ITS/python; without it only this program is measured.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

SRC = Path(__file__).resolve().parents[1] / "src"
LAYERS = ["blocks.2", "blocks.4"]  # 32 + 96 channels
NETWORK = "mobilenetv2_100"
INPUT = 256  # px
SIDE = 512  # px, of the files
RATIO = 0.01


def main() -> None:
    arguments = parse()
    if arguments.task:
        result = TASKS[arguments.task](Path(arguments.folder), arguments.picks)
        (Path(arguments.folder) / "result.json").write_text(json.dumps(result))
        return
    sides = {"here": sys.executable} | ({"anomalib": arguments.anomalib} if arguments.anomalib else {})
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / str(repeat) for repeat in range(arguments.repeats)]
        for seed, folder in enumerate(folders):
            write_inputs(folder, arguments, seed)
        print(f"{torch.get_num_threads()} threads, CUDA {torch.cuda.is_available()}")
        report_coreset(measure("coreset", sides, folders, arguments))
        report_detector(measure("detector", sides, folders, arguments), folders)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--anomalib", help="the python of an environment with anomalib 2.7")
    parser.add_argument("--weights", default="imagenet", help=f"of {NETWORK}: imagenet, none or a file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=209, help="normal ones to learn from")
    parser.add_argument("--picks", type=int, default=100, help="centres anomalib is timed on; all cost alike")
    parser.add_argument("--task", choices=list(TASKS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(
    task: str, sides: dict[str, str], folders: list[Path], arguments: argparse.Namespace
) -> dict[str, list[dict]]:
    """Results of each side, repeat by repeat."""
    results = {side: [] for side in sides}
    for repeat, folder in enumerate(folders):
        for side in list(sides)[:: 1 if repeat % 2 == 0 else -1]:
            command = [sides[side], __file__, "--task", f"{side}-{task}", "--folder", str(folder)]
            command += ["--picks", str(arguments.picks)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
            if done.returncode:
                raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
            results[side].append(json.loads((folder / "result.json").read_text()))
    return results


def median(results: list[dict], key: str) -> float:
    return float(np.median([result[key] for result in results]))


def ratio(results: dict[str, list[dict]], key: str) -> float:
    """Of anomalib to here, the median of the repeats' ratios."""
    pairs = zip(results["anomalib"], results["here"], strict=True)
    return float(np.median([theirs[key] / ours[key] for theirs, ours in pairs]))


def report_coreset(results: dict[str, list[dict]]) -> None:
    for side, found in results.items():
        print(
            f"coreset, {side:8} {1e3 * median(found, 'per_pick'):7.2f} ms a pick, "
            f"{median(found, 'seconds'):6.1f} s for all, {median(found, 'megabytes'):5.0f} MB with vectors"
        )
    if "anomalib" in results:
        memory = 1 / ratio(results, "megabytes")
        print(f"coreset: {ratio(results, 'seconds'):.0f} times faster, {memory:.2f} of the memory")


def report_detector(results: dict[str, list[dict]], folders: list[Path]) -> None:
    for side, found in results.items():
        aurocs = [auroc(one["scores"], folder) for one, folder in zip(found, folders, strict=True)]
        print(
            f"detector, {side:8} fitted in {median(found, 'fit'):6.1f} s, "
            f"{median(found, 'rate'):5.1f} images/s scored, peak {median(found, 'megabytes'):5.0f} MB, "
            f"AUROC {np.mean(aurocs):.4f} ({', '.join(f'{value:.4f}' for value in aurocs)})"
        )
    share = np.median([found["rate"] / found["bare"] for found in results["here"]])
    bare = median(results["here"], "bare")
    print(f"bare backbone {bare:.1f} images/s, of which scoring from files reaches {share:.2f}")
    if "anomalib" in results:
        rate = 1 / ratio(results, "rate")
        print(f"fitting {ratio(results, 'fit'):.1f} times faster, scoring {rate:.1f} times the images/s")


def auroc(scores: dict[str, float], folder: Path) -> float:
    from sklearn.metrics import roc_auc_score

    labels = json.loads((folder / "labels.json").read_text())
    return roc_auc_score([labels[name] for name in sorted(labels)], [scores[name] for name in sorted(labels)])


# --- what is measured ---


def write_inputs(folder: Path, arguments: argparse.Namespace, seed: int) -> None:
    """normal/, test/ and labels.json, weights.pt, and vectors.npy: the patches of all normal images."""
    sys.path.insert(0, str(SRC))
    from defects.config_schema import BackboneConfig, resolve
    from defects.models.features import create_backbone

    weights = arguments.weights
    folder.mkdir()
    if weights not in ("imagenet", "none"):
        weights = str(resolve(weights))
    network = create_backbone(BackboneConfig(name=NETWORK, weights=weights), num_classes=0)
    torch.save(network.state_dict(), folder / "weights.pt")
    draw_images(folder / "normal", arguments.images, 2 * seed, ["normal"])
    labels = draw_images(folder / "test", 240, 2 * seed + 1, ["normal", "scratch", "normal", "pit"])
    (folder / "labels.json").write_text(json.dumps(labels))
    detector, batches, _ = here(folder, folder / "normal")
    with torch.inference_mode():
        np.save(folder / "vectors.npy", detector.candidates(batches).numpy())


def draw_images(folder: Path, count: int, seed: int, kinds: list[str]) -> dict[str, int]:
    """Textures of the demo, enlarged; labels by file name."""
    import cv2

    from defects.data.layouts.demo import TEXTURES, draw_image

    folder.mkdir()
    labels = {}
    for index in range(count):
        kind, texture = kinds[index % len(kinds)], list(TEXTURES)[index // len(kinds) % len(TEXTURES)]
        image = draw_image([seed, index], texture, kind)[0]
        image = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        (folder / f"{index}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
        labels[f"{index}.png"] = int(kind != "normal")
    return labels


def peak_mb() -> float:
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def here_coreset(folder: Path, _: int) -> dict:
    sys.path.insert(0, str(SRC))
    from defects.models.coreset import greedy_coreset

    vectors = torch.from_numpy(np.load(folder / "vectors.npy"))
    count, other, start = int(RATIO * len(vectors)), peak_mb() - vectors.nbytes / 2**20, time.perf_counter()
    with torch.inference_mode():
        greedy_coreset(vectors, count)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "per_pick": seconds / count, "megabytes": peak_mb() - other}


def anomalib_coreset(folder: Path, picks: int) -> dict:
    """Timed on some picks; the rest cost as much each."""
    from anomalib.models.components import KCenterGreedy

    vectors = torch.from_numpy(np.load(folder / "vectors.npy"))
    other, seconds = peak_mb() - vectors.nbytes / 2**20, []
    for count in (1, picks):  # one: the projection alone
        sampler = KCenterGreedy(vectors, RATIO)
        whole, sampler.coreset_size = sampler.coreset_size, count
        start = time.perf_counter()
        with torch.inference_mode():
            sampler.select_coreset_idxs()
        seconds.append(time.perf_counter() - start)
    each = (seconds[1] - seconds[0]) / (picks - 1)
    return {"seconds": seconds[0] + each * (whole - 1), "per_pick": each, "megabytes": peak_mb() - other}


def here(folder: Path, images: Path) -> tuple:
    """Detector, batches of the images below `images`, and the config."""
    sys.path.insert(0, str(SRC))
    import pandas as pd

    from defects.config_schema import Config
    from defects.data.datasets import DeviceBatches
    from defects.models import build_detector
    from defects.training.loop import make_accelerator

    options = {"layers": LAYERS, "ratio": RATIO, "neighbours": 9}
    backbone = {"name": NETWORK, "weights": str(folder / "weights.pt")}
    data = {"name": "images", "source": "folders", "root": folder, "image_size": [INPUT, INPUT]}
    model = {"name": "patchcore", "backbone": backbone, "options": options}
    infer = {"batch_size": 8, "tta": False}
    config = Config(experiment="benchmark", data=data, model=model, infer=infer)
    paths = sorted(images.iterdir())
    rows = pd.DataFrame({"image_id": [path.name for path in paths], "path": map(str, paths), "label": 0})
    device = make_accelerator(config.train).device
    return build_detector(config).to(device).eval(), DeviceBatches(config, rows, device), (config, rows)


def here_detector(folder: Path, _: int) -> dict:
    start = time.perf_counter()
    detector, batches, _ = here(folder, folder / "normal")
    with torch.no_grad():
        detector.prepare(batches)
    fit = time.perf_counter() - start
    from defects.training.loop import make_accelerator
    from defects.training.scoring import score_table

    config, rows = here(folder, folder / "test")[2]
    start = time.perf_counter()
    accelerator = make_accelerator(config.train)
    table = score_table(detector, config, rows, "0", accelerator, folder / "maps.npz")
    rate = len(rows) / (time.perf_counter() - start)
    scores = dict(zip(table["image_id"], table["score"], strict=True))
    bare = bare_rate(detector.to(accelerator.device), len(rows))
    return {"fit": fit, "rate": rate, "bare": bare, "megabytes": peak_mb(), "scores": scores}


@torch.inference_mode()
def bare_rate(detector: torch.nn.Module, images: int) -> float:
    """Images/s of the backbone alone on a batch in memory."""
    batch = torch.rand(8, 3, INPUT, INPUT, device=detector.memory_bank.device)
    batch = batch.contiguous(memory_format=torch.channels_last)
    detector.features(batch)
    start = time.perf_counter()
    for _ in range(images // len(batch)):
        found = detector.features(batch)
    found[0].sum().item()
    return images / (time.perf_counter() - start)


def anomalib_detector(folder: Path, _: int) -> dict:
    from anomalib.data import PredictDataset
    from anomalib.engine import Engine
    from anomalib.models import Patchcore

    def loader(images: str) -> torch.utils.data.DataLoader:
        dataset = PredictDataset(folder / images)
        return torch.utils.data.DataLoader(dataset, 32, collate_fn=dataset.collate_fn)

    start = time.perf_counter()
    off = {"visualizer": False, "evaluator": False, "post_processor": False}
    model = Patchcore(NETWORK, LAYERS, pre_trained=False, coreset_sampling_ratio=RATIO, **off)
    weights = torch.load(folder / "weights.pt", weights_only=True)
    model.model.feature_extractor.feature_extractor.load_state_dict(weights, strict=False)
    engine = Engine(default_root_dir=folder / "results", enable_progress_bar=False)
    engine.fit(model, train_dataloaders=loader("normal"))
    fit, start = time.perf_counter() - start, time.perf_counter()
    batches = engine.predict(model, dataloaders=loader("test"))
    scores = {
        Path(path).name: float(score)
        for batch in batches
        for path, score in zip(batch.image_path, batch.pred_score.flatten(), strict=True)
    }
    rate = len(scores) / (time.perf_counter() - start)
    return {"fit": fit, "rate": rate, "megabytes": peak_mb(), "scores": scores}


TASKS = {
    "here-coreset": here_coreset,
    "here-detector": here_detector,
    "anomalib-coreset": anomalib_coreset,
    "anomalib-detector": anomalib_detector,
}

if __name__ == "__main__":
    main()
