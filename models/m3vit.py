"""M³ViT: a vision transformer for several tasks with mixture-of-experts layers.

In some layers the MLP is replaced by `experts` small ones. A gate scores them for each token, and the token
goes to the `top_k` best; their results are added, each times its score. Every task has its own gate in each
such layer (or there is one gate that is told the task), so a task uses its own part of a shared network. A
linear decoder per task turns each token into the pixels of its patch.

The training form is `M3ViT`; `TaskModel` is the inference form of one task, made for export to ONNX.

What the ONNX form of a mixture-of-experts layer looks like
-----------------------------------------------------------
B is the batch, N tokens, D the token width, E experts, H their hidden width, k top-k; ``x`` [B, N, D] is the
output of the LayerNormalization before the layer and feeds the gate and the experts.

The gate, with ``order="softmax_topk"``::

    logits = MatMul(x, gate_weight [D, E])            # gate="shared": then Add(., bias [E]), the task's part
    probs  = Softmax(logits, axis=-1)
    score, expert = TopK(probs, [k], axis=-1, largest=1, sorted=1)     # [B, N, k] each
    zeros  = Expand(0.0, Shape(logits))                                # [B, N, E]
    gate   = ScatterElements(zeros, expert, score, axis=-1)            # [B, N, E], at most k are not zero

``order="topk_softmax"`` has ``top, expert = TopK(logits, ...)`` and ``score = Softmax(top, axis=-1)``. With a
threshold t > 0, ``score`` passes ``Where(GreaterOrEqual(score, t), score, 0)`` before ScatterElements.
Equal values: ONNX's TopK takes the lower index first.

The experts, ``form="stacked"`` (the form that is shipped)::

    h = Gelu(Add(MatMul(Unsqueeze(x, [1]), weight1 [E, D, H]), bias1 [E, 1, H]))  # [B, E, N, H]
    y = Add(MatMul(h, weight2 [E, H, D]), bias2 [E, 1, D])                        # [B, E, N, D]
    g = Unsqueeze(Transpose(gate, [0, 2, 1]), [-1])                               # [B, E, N, 1]
    out = ReduceSum(Mul(y, g), [1], keepdims=0)                                   # [B, N, D]

``form="unrolled"``: for each expert e ``y_e = Add(MatMul(Gelu(Add(MatMul(x, W1_e), b1_e)), W2_e), b2_e)``,
``g_e = Slice(gate, [e], [e + 1], axes=[-1])``, and ``out`` is the left-leaning chain of Add over
``Mul(y_e, g_e)``.

Both are dense: they compute every expert for every token and multiply most of them by zero, so any ONNX
runtime executes them unchanged, and a compiler that recognises the ScatterElements of a TopK into zeros may
leave out what is multiplied by zero.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import checkpoint
from .vit import Attention, ViTConfig

__all__ = [
    "CONFIGS",
    "FORMS",
    "GATES",
    "ORDERS",
    "SCENE",
    "TINY",
    "Experts",
    "Gate",
    "M3ViT",
    "M3ViTConfig",
    "TaskModel",
    "balance_loss",
    "load_checkpoint",
    "route",
    "save_checkpoint",
]

_FORMAT = "moevit-m3vit-1"

#: One gate per task, or one that sees the token and an embedding of the task.
GATES = ("task", "shared")

#: Softmax over all experts and then top-k without renormalising, or top-k and then softmax over the k.
ORDERS = ("softmax_topk", "topk_softmax")

#: How the experts are written in the inference form.
FORMS = ("stacked", "unrolled")


@dataclass(frozen=True, kw_only=True)
class M3ViTConfig:
    """Shape of an M³ViT.

    Parameters
    ----------
    image_height, image_width
        Image size in pixels; both must be multiples of `patch_size`.
    channels
        Image channels.
    patch_size
        Side of the square patches in pixels.
    dim
        Width of a token; must be a multiple of `heads`.
    depth
        Number of transformer blocks.
    heads
        Attention heads per block.
    hidden
        Hidden width of the MLP in a block without experts.
    moe_layers
        Blocks with experts, counted from 0, in ascending order.
    experts, expert_hidden, top_k
        Number of experts of such a block, their hidden width, and how many a token goes to.
    tasks
        Name and output channels of each task.
    gate
        One of `GATES`.
    task_dim
        Width of the task's embedding, for ``gate="shared"``.
    order
        One of `ORDERS`.
    threshold
        Scores below it are replaced by zero after top-k; 0 prunes nothing.
    noise_std
        Standard deviation, times `experts`, of the normal noise on the gate's logits in training.
    class_token
        Whether a class token goes in front of the patches' (the decoders do not see it).

    Raises
    ------
    ValueError
        A value is not possible, or does not fit another.
    """

    image_height: int
    image_width: int
    channels: int
    patch_size: int
    dim: int
    depth: int
    heads: int
    hidden: int
    moe_layers: tuple[int, ...]
    experts: int
    expert_hidden: int
    top_k: int
    tasks: tuple[tuple[str, int], ...]
    gate: str = "task"
    task_dim: int = 64
    order: str = "softmax_topk"
    threshold: float = 0.0
    noise_std: float = 1.0
    class_token: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{field.name} must be a positive integer, not {value!r}")
        for name in ("image_height", "image_width"):
            value = getattr(self, name)
            if value % self.patch_size:
                raise ValueError(f"{name} must be a multiple of patch_size {self.patch_size}, not {value}")
        if self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads {self.heads}, not {self.dim}")
        if self.top_k > self.experts:
            raise ValueError(f"top_k must be at most experts {self.experts}, not {self.top_k}")
        layers = list(self.moe_layers)
        if layers != sorted(set(layers)) or not all(0 <= layer < self.depth for layer in layers):
            raise ValueError(f"moe_layers must be ascending and below depth {self.depth}, not {layers}")
        names = [name for name, _ in self.tasks]
        if not names or len(set(names)) != len(names) or not all(name.isidentifier() for name in names):
            raise ValueError(f"tasks must have different names that are identifiers, not {names}")
        for name, channels in self.tasks:
            if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
                raise ValueError(f"channels of task {name} must be a positive integer, not {channels!r}")
        for field_name, allowed in (("gate", GATES), ("order", ORDERS)):
            value = getattr(self, field_name)
            if value not in allowed:
                raise ValueError(f"{field_name} must be one of {', '.join(allowed)}, not {value!r}")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold must be at least 0 and below 1, not {self.threshold!r}")
        if not 0 <= self.noise_std < float("inf"):
            raise ValueError(f"noise_std must be finite and at least 0, not {self.noise_std!r}")

    @property
    def patches(self) -> int:
        return (self.image_height // self.patch_size) * (self.image_width // self.patch_size)

    @property
    def tokens(self) -> int:
        return self.patches + self.class_token

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.tasks)

    def task_index(self, task: str) -> int:
        """Number of a task; ValueError names those there are."""
        if task not in self.task_names:
            raise ValueError(f"task must be one of {', '.join(self.task_names)}, not {task!r}")
        return self.task_names.index(task)


def _published(
    height: int, width: int, dim: int, heads: int, tasks: tuple[tuple[str, int], ...]
) -> M3ViTConfig:
    """What the published configurations have in common: every second block has 16 experts of twice `dim`."""
    return M3ViTConfig(
        image_height=height, image_width=width, channels=3, patch_size=16, dim=dim, depth=12, heads=heads,
        hidden=4 * dim, moe_layers=(1, 3, 5, 7, 9, 11), experts=16, expert_hidden=2 * dim, top_k=2, tasks=tasks,
    )  # fmt: skip


_NYUD = (("seg", 40), ("depth", 1))
_PASCAL = (("seg", 21), ("human_parts", 7), ("saliency", 1), ("edge", 1), ("normals", 3))

#: M³ViT tiny for Cityscapes: 128x256, 129 tokens.
TINY = _published(128, 256, 192, 3, (("seg", 19), ("depth", 1)))

#: The shipped model's shape: 64 tokens, every second of six blocks with 8 experts, 0.9 M parameters.
SCENE = M3ViTConfig(
    image_height=64, image_width=64, channels=1, patch_size=8, dim=96, depth=6, heads=3, hidden=288,
    moe_layers=(1, 3, 5), experts=8, expert_hidden=96, top_k=2, tasks=(("seg", 11), ("depth", 1)),
    class_token=False,
)  # fmt: skip

#: Named configurations.
CONFIGS = {
    "scene": SCENE,
    "tiny": TINY,
    "small_nyud": _published(480, 640, 384, 12, _NYUD),
    "small_pascal": _published(512, 512, 384, 12, _PASCAL),
    "base_nyud": _published(480, 640, 768, 12, _NYUD),
    "base_pascal": _published(512, 512, 768, 12, _PASCAL),
}


def route(logits: Tensor, *, top_k: int, order: str = "softmax_topk", threshold: float = 0.0) -> Tensor:
    """Turn a gate's logits into a score for each expert, zero but for the `top_k` best.

    Parameters
    ----------
    logits
        ``[..., experts]``.
    top_k
        How many experts a token goes to.
    order
        One of `ORDERS`.
    threshold
        Scores below it become zero; they are not scaled up again.

    Returns
    -------
    Tensor
        ``[..., experts]``.
    """
    if order == "softmax_topk":
        score, expert = torch.topk(torch.softmax(logits, -1), top_k, dim=-1)
    elif order == "topk_softmax":
        top, expert = torch.topk(logits, top_k, dim=-1)
        score = torch.softmax(top, -1)
    else:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
    if threshold > 0:
        score = torch.where(score >= threshold, score, 0.0)
    return torch.zeros_like(logits).scatter(-1, expert, score)


def _cv_squared(x: Tensor) -> Tensor:
    """Squared coefficient of variation, with the unbiased variance; 0 for one value."""
    if x.numel() == 1:
        return torch.zeros(())
    return x.var() / (x.mean() ** 2 + 1e-10)


def balance_loss(gate: Tensor, clean: Tensor, noisy: Tensor, *, top_k: int, noise_std: float) -> Tensor:
    """Load-balancing loss of one layer: cv²(importance) + cv²(load).

    The importance of an expert is the sum of its scores; its load is the number of its tokens. Where noise
    was added, the count is replaced by its expectation under fresh noise on that expert alone, which has a
    gradient.

    Parameters
    ----------
    gate
        What `route` made of the noisy logits, ``[tokens, experts]``.
    clean, noisy
        The logits without and with the noise.
    top_k
        How many experts a token goes to.
    noise_std
        Standard deviation of the noise; 0 for none.
    """
    experts = gate.shape[-1]
    if noise_std > 0 and top_k < experts:
        top = torch.topk(noisy, top_k + 1, dim=-1).values
        first_out, last_in = top[:, top_k, None], top[:, top_k - 1, None]
        rival = torch.where(noisy > first_out, first_out, last_in)
        load = torch.special.ndtr((clean - rival) / noise_std).sum(0)
    else:
        load = (gate > 0).to(gate.dtype).sum(0)
    return _cv_squared(gate.sum(0)) + _cv_squared(load)


class Gate(nn.Module):
    """Scores the experts of one layer: no bias; one linear layer per task, or one that also sees the task."""

    def __init__(self, config: M3ViTConfig) -> None:
        super().__init__()
        self.shared = config.gate == "shared"
        self.dim = config.dim
        inputs = config.dim + (config.task_dim if self.shared else 0)
        count = 1 if self.shared else len(config.tasks)
        self.linear = nn.ModuleList(nn.Linear(inputs, config.experts, bias=False) for _ in range(count))
        if self.shared:
            self.embedding = nn.Embedding(len(config.tasks), config.task_dim)

    def forward(self, x: Tensor, task: int) -> Tensor:
        if not self.shared:
            return self.linear[task](x)
        embedding = self.embedding.weight[task].expand(*x.shape[:-1], -1)
        return self.linear[0](torch.cat((x, embedding), dim=-1))

    def of_task(self, task: int) -> nn.Linear:
        """The same scores for one task as a linear layer; the task's embedding becomes its bias."""
        whole = self.linear[0 if self.shared else task].weight.detach()
        linear = nn.Linear(self.dim, whole.shape[0], bias=self.shared)
        with torch.no_grad():
            linear.weight.copy_(whole[:, : self.dim])
            if self.shared:
                linear.bias.copy_(whole[:, self.dim :] @ self.embedding.weight[task])
        return linear


class Experts(nn.Module):
    """The experts of one layer: each is linear, GELU, linear."""

    def __init__(self, config: M3ViTConfig) -> None:
        super().__init__()
        experts, dim, hidden = config.experts, config.dim, config.expert_hidden
        self.weight1 = nn.Parameter(torch.empty(experts, dim, hidden))
        self.bias1 = nn.Parameter(torch.zeros(experts, 1, hidden))
        self.weight2 = nn.Parameter(torch.empty(experts, hidden, dim))
        self.bias2 = nn.Parameter(torch.zeros(experts, 1, dim))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """Compute each expert for its tokens only.

        Parameters
        ----------
        x
            ``[tokens, dim]``.
        gate
            ``[tokens, experts]``, as `route` gives it.
        """
        out = torch.zeros_like(x)
        for expert in range(gate.shape[1]):
            queue = gate[:, expert].nonzero()[:, 0]
            h = F.gelu(x[queue] @ self.weight1[expert] + self.bias1[expert])
            y = h @ self.weight2[expert] + self.bias2[expert]
            out = out.index_add(0, queue, y * gate[queue, expert, None])
        return out

    def dense(self, x: Tensor, gate: Tensor) -> Tensor:
        """Compute every expert for every token: ``[batch, tokens, dim]``, ``[batch, tokens, experts]``."""
        h = F.gelu(torch.matmul(x.unsqueeze(1), self.weight1) + self.bias1)
        y = torch.matmul(h, self.weight2) + self.bias2
        return (y * gate.transpose(1, 2).unsqueeze(-1)).sum(1)


class Block(nn.Module):
    """``x + attention(norm1(x))``, then ``x + mlp(norm2(x))``; where `gate` is one, `mlp` are experts."""

    def __init__(self, config: M3ViTConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim)
        self.attn = Attention(ViTConfig(dim=config.dim, heads=config.heads))
        self.norm2 = nn.LayerNorm(config.dim)
        if layer in config.moe_layers:
            self.gate: Any = Gate(config)
            self.mlp: Any = Experts(config)
        else:
            self.gate = None
            self.mlp = nn.Sequential(
                nn.Linear(config.dim, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.dim)
            )


class Embed(nn.Module):
    """Patches, class token if any, positions."""

    def __init__(self, config: M3ViTConfig) -> None:
        super().__init__()
        self.patch = nn.Conv2d(config.channels, config.dim, config.patch_size, stride=config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim)) if config.class_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens, config.dim))

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        return x + self.pos_embed


def _to_pixels(x: Tensor, config: M3ViTConfig, channels: int) -> Tensor:
    """``[batch, patches, channels * p * p]`` to ``[batch, channels, height, width]``."""
    p = config.patch_size
    rows, cols = config.image_height // p, config.image_width // p
    x = x.reshape(x.shape[0], rows, cols, channels, p, p).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(x.shape[0], channels, config.image_height, config.image_width)


class M3ViT(nn.Module):
    """The network with all its tasks, as it is trained.

    Parameters
    ----------
    config
        Its shape.

    Members
    -------
    forward(image, task)
        ``image`` is float32 ``[batch, channels, height, width]`` with pixels in [0, 1], `task` a task's name;
        the result is float32 ``[batch, channels of the task, height, width]``.
    balance
        After `forward` in training mode: the mean over the layers with experts of `balance_loss`.
    """

    def __init__(self, config: M3ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embed(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.norm = nn.LayerNorm(config.dim)
        self.decoders = nn.ModuleDict(
            {name: nn.Linear(config.dim, channels * config.patch_size**2) for name, channels in config.tasks}
        )
        self.balance = torch.zeros(())
        for name, parameter in self.named_parameters():
            if "token" in name or "pos_embed" in name or "embedding" in name:
                nn.init.trunc_normal_(parameter, std=0.02 if "embedding" not in name else 1.0)
            elif name.endswith((".mlp.weight1", ".mlp.weight2")):
                for expert in parameter:
                    nn.init.xavier_uniform_(expert)
            elif parameter.ndim == 2:
                nn.init.xavier_uniform_(parameter)
            elif ".bias" in name:
                nn.init.zeros_(parameter)

    def forward(self, image: Tensor, task: str) -> Tensor:
        config = self.config
        index = config.task_index(task)
        losses = []
        x = self.embed(image)
        for block in self.blocks:
            x = x + block.attn(block.norm1(x))
            h = block.norm2(x)
            if block.gate is None:
                x = x + block.mlp(h)
                continue
            flat = h.reshape(-1, config.dim)
            clean = noisy = block.gate(flat, index)
            noise_std = config.noise_std / config.experts if self.training else 0.0
            if noise_std > 0:
                noisy = clean + noise_std * torch.randn_like(clean)
            gate = route(noisy, top_k=config.top_k, order=config.order, threshold=config.threshold)
            if self.training:
                losses.append(balance_loss(gate, clean, noisy, top_k=config.top_k, noise_std=noise_std))
            x = x + block.mlp(flat, gate).reshape(x.shape)
        if losses:
            self.balance = torch.stack(losses).mean()
        x = self.norm(x)[:, int(config.class_token) :]
        return _to_pixels(self.decoders[task](x), config, config.tasks[index][1])


class TaskModel(nn.Module):
    """The inference form of one task, which exports to the nodes that this module's docstring shows.

    Its weights are `model`'s, but for a shared gate's, which are split into what all tasks have in common and
    a bias.

    Parameters
    ----------
    model
        The network.
    task
        Name of the task.
    form
        One of `FORMS`.
    """

    def __init__(self, model: M3ViT, task: str, *, form: str = "stacked") -> None:
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, not {form!r}")
        self.config = config = model.config
        index = config.task_index(task)
        self.channels = config.tasks[index][1]
        self.embed, self.blocks, self.norm = model.embed, model.blocks, model.norm
        self.decoder = model.decoders[task]
        self.gates = nn.ModuleDict(
            {str(layer): model.blocks[layer].gate.of_task(index) for layer in config.moe_layers}
        )
        self.unrolled = nn.ModuleDict()
        if form == "unrolled":
            for layer in config.moe_layers:
                self.unrolled[str(layer)] = nn.ModuleList(_unroll(model.blocks[layer].mlp))
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        config = self.config
        x = self.embed(image)
        for layer, block in enumerate(self.blocks):
            x = x + block.attn(block.norm1(x))
            h = block.norm2(x)
            if block.gate is None:
                x = x + block.mlp(h)
                continue
            logits = self.gates[str(layer)](h)
            gate = route(logits, top_k=config.top_k, order=config.order, threshold=config.threshold)
            if str(layer) not in self.unrolled:
                x = x + block.mlp.dense(h, gate)
                continue
            parts = [expert(h) * gate[..., e : e + 1] for e, expert in enumerate(self.unrolled[str(layer)])]
            out = parts[0]
            for part in parts[1:]:
                out = out + part
            x = x + out
        x = self.norm(x)
        if config.class_token:
            x = x[:, 1:]
        return _to_pixels(self.decoder(x), config, self.channels)


def _unroll(experts: Experts) -> list[nn.Module]:
    """One linear, GELU, linear per expert, with the same weights."""
    out = []
    for w1, b1, w2, b2 in zip(
        experts.weight1, experts.bias1, experts.weight2, experts.bias2, strict=True
    ):  # fmt: skip
        first, second = nn.Linear(*w1.shape), nn.Linear(*w2.shape)
        with torch.no_grad():
            for linear, weight, bias in ((first, w1, b1), (second, w2, b2)):
                linear.weight.copy_(weight.T)
                linear.bias.copy_(bias[0])
        out.append(nn.Sequential(first, nn.GELU(), second))
    return out


def save_checkpoint(model: M3ViT, path: str) -> None:
    """Write the configuration and the weights of `model`."""
    checkpoint.save(model, model.config, _FORMAT, path)


def load_checkpoint(path: str) -> M3ViT:
    """Read what `save_checkpoint` wrote, in evaluation mode; ModelError if it is no such file."""
    return checkpoint.load(path, _FORMAT, "moevit.models.m3vit_train", lambda c: M3ViT(M3ViTConfig(**c)))
