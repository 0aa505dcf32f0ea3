"""Train a small convolutional network on 8x8 digits: `train.parquet` in, `model.onnx` out.

One process, or several that share each batch (DDP): whoever starts them sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
MASTER_PORT, as torchrun and Azure ML do. On GPUs over NCCL and with bfloat16, on CPUs over gloo and in single precision.
Several processes make the model that one makes, to within rounding. A run that is told to end saves what it has.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow.parquet as pq
import torch
from torch import distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

CLASSES = list(range(10))
MOST_DIFFERENCE = 1e-4
# As a shell says it of SIGTERM.
TOLD_TO_END = 143


class Network(nn.Module):
    """64 pixels from 0 to 16 in a row, ten scores out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.last = nn.Linear(2 * channels * 4, len(CLASSES))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        image = (pixels / 16).reshape(-1, 1, 8, 8)
        image = functional.max_pool2d(functional.relu(self.first(image)), 2)
        image = functional.max_pool2d(functional.relu(self.second(image)), 2)
        scores: torch.Tensor = self.last(image.flatten(1))
        return scores


class Answering(nn.Module):
    """The network as it is asked once it is trained: for probabilities."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return functional.softmax(self.network(pixels), dim=1)


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is, and what it computes on."""

    rank: int
    world: int
    device: torch.device

    def agree(self, told: bool) -> bool:
        """Whether any of the processes was told to end."""
        if self.world == 1:
            return told
        value = torch.tensor([float(told)], device=self.device)
        distributed.all_reduce(value, distributed.ReduceOp.MAX)
        return bool(value.item())

    def share(self, value: Any) -> Any:
        """What the first process has."""
        if self.world == 1:
            return value
        shared = [value if self.rank == 0 else None]
        distributed.broadcast_object_list(shared, src=0, device=self.device)
        return shared[0]


def join() -> Place:
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if world > 1:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Place(rank, world, device)


def seed_everything(seed: int) -> None:
    # Before the first call into cuBLAS, which otherwise sums in any order.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)


def read(path: Path, features: list[str], label: str) -> tuple[torch.Tensor, torch.Tensor]:
    table = pq.read_table(path, columns=[*features, label])
    pixels = np.stack([table.column(name).to_numpy() for name in features], axis=1).astype(np.float32)
    return torch.from_numpy(pixels), torch.from_numpy(table.column(label).to_numpy().astype(np.int64))


# ------------------------------------------------------------------------------------------------ training
def fit(
    network: Network,
    data: tuple[torch.Tensor, torch.Tensor],
    place: Place,
    asked: dict[str, Any],
    seed: int,
    checkpoint: Path,
) -> None:
    """Train from the last checkpoint on; leaves with `TOLD_TO_END` when told to end."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    optimizer = torch.optim.AdamW(network.parameters(), lr=asked["learning_rate"], weight_decay=1e-3)
    state = torch.load(checkpoint, weights_only=True) if place.rank == 0 and checkpoint.exists() else None
    state = place.share(state)
    first = 0
    if state is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"]
        print(f"going on after epoch {first}")
    model = network if place.world == 1 else DistributedDataParallel(network)
    for epoch in range(first, asked["epochs"]):
        loss = one_epoch(model, data, optimizer, place, asked["batch_size"], seed + epoch)
        ends = place.agree(bool(told))
        if place.rank == 0:
            print(f"epoch {epoch + 1}/{asked['epochs']}: loss {loss:.4f}")
            save(network, optimizer, epoch + 1, checkpoint)
        if ends:
            print("told to end; what there is is saved")
            sys.exit(TOLD_TO_END)


def one_epoch(
    model: nn.Module,
    data: tuple[torch.Tensor, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    place: Place,
    batch_size: int,
    seed: int,
) -> float:
    """Whole batches in an order that the seed alone decides. Each process takes its part of every batch; DDP takes the
    mean of their gradients, which is the gradient of the batch."""
    order = torch.randperm(len(data[1]), generator=torch.Generator().manual_seed(seed))
    loss = torch.zeros(())
    for start in range(0, len(order) - batch_size + 1, batch_size):
        mine = order[start : start + batch_size][place.rank :: place.world]
        pixels, digits = (part[mine].to(place.device) for part in data)
        with torch.autocast(place.device.type, torch.bfloat16, enabled=place.device.type == "cuda"):
            loss = functional.cross_entropy(model(pixels), digits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def save(network: Network, optimizer: torch.optim.Optimizer, epoch: int, checkpoint: Path) -> None:
    """Whole or not at all."""
    part = checkpoint.with_suffix(".part")
    torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, part)
    part.replace(checkpoint)


# ------------------------------------------------------------------------------------------------ leaving
def export(network: Network, pixels: torch.Tensor, features: list[str], path: Path) -> float:
    """Write the model; returns how far the answers of onnxruntime are from PyTorch's, at most."""
    answering = Answering(network).eval()
    # It tells that torchvision is not there, which nobody asked for.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            answering,
            (pixels[:2],),
            path,
            input_names=["pixels"],
            output_names=["probabilities"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("rows")}},
            external_data=False,
            verbose=False,
        )
    model = onnx.load(path)
    # By these the server takes rows as objects with the names of the columns, and knows which probability is whose.
    onnx.helper.set_model_props(model, {"features": json.dumps(features), "classes": json.dumps(CLASSES)})
    onnx.save(model, path)
    (found,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"pixels": pixels.numpy()}
    )
    with torch.no_grad():
        return float(np.abs(found - answering(pixels).numpy()).max())


def main() -> None:
    started = time.perf_counter()
    seed, output = int(os.environ["DROPFORGE_SEED"]), Path(os.environ["DROPFORGE_OUTPUT"])
    asked = json.loads(Path(os.environ["DROPFORGE_PARAMETERS"]).read_text())
    features, label = os.environ["DROPFORGE_FEATURES"].split(","), os.environ["DROPFORGE_LABEL"]
    place = join()
    seed_everything(seed)
    data = read(Path(os.environ["DROPFORGE_TRAIN_DATA"]), features, label)
    network = Network(asked["channels"]).to(place.device)
    fit(network, data, place, asked, seed, Path(os.environ["DROPFORGE_CHECKPOINTS"]) / "last.pt")
    if place.world > 1:
        distributed.destroy_process_group()
    if place.rank > 0:
        return
    pixels, digits = data
    network = network.cpu().float()
    difference = export(network, pixels, features, output / "model.onnx")
    print(
        f"trained on {len(digits):,} digits with {place.world} processes ({place.device.type}); ONNX differs by {difference:.1e}"
    )
    if difference > MOST_DIFFERENCE:
        raise SystemExit(f"the ONNX model answers differently: {difference:.5f}; at most {MOST_DIFFERENCE} is allowed")
    with torch.no_grad():
        right = (network(pixels).argmax(1) == digits).float().mean()
    metrics = {
        "train_accuracy": float(right),
        "parity_max_difference": difference,
        "train_seconds": time.perf_counter() - started,
        "processes": place.world,
    }
    (output / "metrics.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main()
