"""A grammar of vision transformers: what one is made of, and in which of the ways it is spelled."""

from dataclasses import dataclass

from hypothesis import strategies as st

OPSETS = tuple(range(13, 24))
NODE_SINCE = {"LayerNormalization": 17, "Gelu": 20, "Attention": 23, "RMSNormalization": 23}
#: the opset that brought a node


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One model; `fuzz.encoder` makes it. The words are explained where they are read there."""

    seed: int
    opset: int
    channels: int
    height: int
    width: int
    heads: int
    head_dim: int
    dim: int
    hidden: int
    blocks: int
    embed: str
    position: bool
    class_token: bool
    norm: str
    norm_form: str
    eps: float
    qkv: str
    attention: str
    mask: str
    layer_scale: bool
    linear: str
    bias: bool
    activation: str
    activation_form: str
    experts: int
    top_k: int
    foreign: str
    end: str
    constants: str

    @property
    def tokens(self) -> int:
        return self.height * self.width + self.class_token


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Any model of the grammar."""
    opset = draw(st.sampled_from(OPSETS))

    def words(*usual: str, **since: str) -> str:
        """One of some words, and of those whose node the operator set has."""
        return draw(st.sampled_from([*usual, *(w for w, node in since.items() if opset >= NODE_SINCE[node])]))

    class_token = draw(st.booleans())
    experts = draw(st.sampled_from((0, 0, 0, 3, 5)))
    return Recipe(
        seed=draw(st.integers(0, 99)), opset=opset, channels=draw(st.sampled_from((1, 3))),
        height=draw(st.integers(1, 4)), width=draw(st.integers(2, 4)), heads=draw(st.integers(1, 3)),
        head_dim=draw(st.sampled_from((4, 8, 12, 16))), dim=draw(st.sampled_from((8, 12, 24, 32))),
        hidden=draw(st.sampled_from((8, 20, 48))), blocks=draw(st.integers(0, 2)),
        embed=words("conv", "reshape", "space_to_depth"), position=draw(st.booleans()), class_token=class_token,
        norm=words("pre", "pre", "post"),
        norm_form=words("pow", "mul", "rms", node="LayerNormalization", rms_node="RMSNormalization"),
        eps=draw(st.sampled_from((1e-6, 1e-5, 1e-12))), qkv=words("separate", "split", "slices", "unbind"),
        attention=words("scale_after", "scale_query", "divide", "both", "einsum", node="Attention"),
        mask=words("none", "none", "zeros", "keys"), layer_scale=draw(st.booleans()),
        linear=words("matmul", "gemm", "transposed"), bias=draw(st.booleans()),
        activation=words("gelu", "gelu_tanh", "relu", "silu"), activation_form=words("spelled", node="Gelu"),
        experts=experts, top_k=draw(st.integers(1, max(experts - 1, 1))),
        foreign=words(*["none"] * 5, "gate", "bias", "rotary", "windows"),
        end=draw(st.sampled_from((*("class",) * class_token, "mean", "tokens", "map", "features"))),
        constants=words("initialisers", "nodes", "identity"),
    )  # fmt: skip
