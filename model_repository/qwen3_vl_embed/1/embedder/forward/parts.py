"""The parts of transformers' Qwen3-VL that are replaced by ones that do the same with less work, and why they may."""

import torch
from torch import nn
from transformers import PreTrainedModel

from . import cpu
from .attention import PassContext, packed_attention
from .operations import FEW, Operations


class StillPatchEmbed(nn.Module):
    """The vision tower's patch embedding of a still image as one matrix product.

    A still image is its own second frame. So the convolution's kernel is summed over time once, and no patch is
    repeated: (P, patch * patch * 3) -> (P, hidden). Its columns stand in the order in which a patch lies in an image,
    so that no image has to be turned channel first. Conv3d is 10 to 1000 times slower on some builds.
    """

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        weight = conv.weight.detach().float().sum(dim=2)  # (hidden, 3, patch, patch)
        weight = weight.permute(0, 2, 3, 1).flatten(1).contiguous()
        self.proj = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
        self.proj.weight.data = weight.to(conv.weight.dtype)
        self.proj.bias.data = conv.bias.detach()

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.proj(patches.to(self.proj.weight.dtype))


def fuse_norms(module: nn.Module) -> None:
    """torch's own RMSNorm, one kernel, in place of transformers' `Qwen3VLTextRMSNorm`, seven of them; in place.

    The same formula: normalised in float32, whatever the dtype; to the bit in float32.
    """
    for name, child in module.named_children():
        if type(child).__name__.endswith("TextRMSNorm"):
            fused = nn.RMSNorm(child.weight.shape, child.variance_epsilon, device="meta")
            fused.weight = child.weight
            setattr(module, name, fused)
        else:
            fuse_norms(child)


def joined(*linears: nn.Linear) -> nn.Linear:
    """One product in place of several of the same inputs: (R, I) -> (R, the sum of their outputs), in their order."""
    first = linears[0]
    one = nn.Linear(first.in_features, sum(each.out_features for each in linears), first.bias is not None, "meta")
    one.weight = nn.Parameter(torch.cat([each.weight.detach() for each in linears]))
    if first.bias is not None:
        one.bias = nn.Parameter(torch.cat([each.bias.detach() for each in linears]))
    return one


class TextAttention(nn.Module):
    """transformers' `Qwen3VLTextAttention` (and its MoE twin) with one product for queries, keys and values."""

    def __init__(self, theirs: nn.Module, operations: Operations) -> None:
        super().__init__()
        self.qkv, self.o_proj = joined(theirs.q_proj, theirs.k_proj, theirs.v_proj), theirs.o_proj
        self.q_norm, self.k_norm = theirs.q_norm, theirs.k_norm
        self.head_dim, self.scaling, self.layer_idx = theirs.head_dim, theirs.scaling, theirs.layer_idx
        self.is_causal, self.operations = True, operations
        outputs = (theirs.q_proj.out_features, theirs.k_proj.out_features)
        self.queries, self.keys = (each // self.head_dim for each in outputs)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        context: PassContext,
        **_: object,
    ) -> tuple[torch.Tensor, None]:
        """(1, T, D) -> (1, T, D)"""
        qkv = self.qkv(hidden_states[0]).unflatten(1, (-1, self.head_dim))  # (T, heads, head_dim)
        cosines, sines = (each[0] for each in position_embeddings)
        turning = cosines, sines, (self.q_norm.weight, self.k_norm.weight), self.queries, self.q_norm.eps
        if len(qkv) <= FEW and context.prefixes is None and context.kept is None:
            attended = self.operations.short_attention(qkv, *turning, context.bounds, self.scaling)
            return self.o_proj(attended.flatten(1)[None]), None
        heads, value = qkv.split([self.queries + self.keys, self.keys], dim=1)
        turned = self.operations.rotate(heads, *turning)
        query, key = turned.split([self.queries, self.keys], dim=1)
        return self.o_proj(attend(self, query, key, value, context)[None]), None


class GatedMLP(nn.Module):
    """transformers' `Qwen3VLTextMLP`, whose activation is SiLU, with one product for gate and up."""

    def __init__(self, theirs: nn.Module, operations: Operations) -> None:
        super().__init__()
        self.gate_up, self.down_proj = joined(theirs.gate_proj, theirs.up_proj), theirs.down_proj
        self.operations = operations

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.operations.linear_silu_mul(hidden, self.gate_up.weight))


class VisionMLP(nn.Module):
    """transformers' `Qwen3VLVisionMLP`, whose activation is tanh's GELU."""

    def __init__(self, theirs: nn.Module, operations: Operations) -> None:
        super().__init__()
        self.linear_fc1, self.linear_fc2, self.operations = theirs.linear_fc1, theirs.linear_fc2, operations

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        first = self.linear_fc1
        return self.linear_fc2(self.operations.linear_gelu(hidden, first.weight, first.bias))


class VisionBlock(nn.Module):
    """transformers' `Qwen3VLVisionBlock` (and its MoE twin), whose activation is tanh's GELU."""

    def __init__(self, theirs: nn.Module, operations: Operations) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attn = theirs.norm1, theirs.norm2, theirs.attn
        self.mlp, self.operations = VisionMLP(theirs.mlp, operations), operations

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        context: PassContext,
        **_: object,
    ) -> torch.Tensor:
        """(P, D) -> (P, D)"""
        qkv = self.attn.qkv(self.norm1(hidden_states)).unflatten(1, (3, self.attn.num_heads, -1))
        turning, value = qkv[:, :2].flatten(1, 2), qkv[:, 2]
        query, key = self.operations.rotate(turning, *position_embeddings, None, 0, 0.0).chunk(2, dim=1)
        attended = self.operations.full_attention(query, key, value, context.bounds, self.attn.scaling)
        attended, norm = self.attn.proj(attended.flatten(1)), self.norm2
        hidden, normed = self.operations.add_norm(hidden_states, attended, norm.weight, norm.bias, norm.eps)
        return hidden + self.mlp(normed)


def attend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, context: PassContext
) -> torch.Tensor:
    """(T, heads, head_dim) each -> (T, heads * head_dim)."""
    q, k, v = (each.transpose(0, 1)[None] for each in (query, key, value))
    out, _ = packed_attention(module, q, k, v, None, module.scaling, context)
    return out[0].flatten(1)


def fuse(model: PreTrainedModel, operations: Operations) -> None:
    """Put these parts in, in place. What a checkpoint's config.json does otherwise (another activation) stays."""
    text, vision = model.config.text_config, model.config.vision_config
    for layer in model.language_model.layers:
        layer.self_attn = TextAttention(layer.self_attn, operations)
        if hasattr(layer.mlp, "gate_proj") and text.hidden_act == "silu":  # experts have none
            layer.mlp = GatedMLP(layer.mlp, operations)
    if vision.hidden_act == "gelu_pytorch_tanh":
        blocks = [VisionBlock(block, operations) for block in model.visual.blocks]
        model.visual.blocks = nn.ModuleList(blocks)
    if model.device.type == "cpu":
        for part in model.modules():
            if type(part) is nn.Linear:
                part.__class__ = cpu.Linear


def decoder_layer(
    layer: nn.Module,
    hidden: torch.Tensor,
    normed: torch.Tensor,
    positions: tuple[torch.Tensor, torch.Tensor],
    context: PassContext,
    operations: Operations,
    rows: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers' `Qwen3VLTextDecoderLayer.forward` (and its MoE twin's), but for its first norm and its last sum.

    Those two are one kernel between two layers. `normed`: `hidden` after the layer's own first norm, (1, T, D) each.
    `rows`: (R,) int64, the only tokens that are read afterwards; None for all. Keys and values need every token; what
    follows the attention works token by token, so it runs for those alone, which is exact.
    Returns the states before the MLP and what it adds to them, (1, R, D) each.
    """
    norm = layer.post_attention_layernorm
    attended, _ = layer.self_attn(
        hidden_states=normed, position_embeddings=positions, attention_mask=None, context=context
    )
    before, normed = operations.add_norm(at(hidden, rows), at(attended, rows), norm.weight, None, norm.eps)
    return before, layer.mlp(normed)


def at(states: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """(1, T, D) -> (1, R, D); all of them for None."""
    return states if rows is None else states.index_select(1, rows.to(states.device))


def add_image_features(hidden_states: torch.Tensor, tokens: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """DeepStack's addition at the images' tokens, in place of transformers' `_deepstack_process`.

    That one gets a mask and waits until the device has counted it; here `tokens` are the indices themselves.
    """
    features = features.to(hidden_states.device, hidden_states.dtype)
    return hidden_states[0].index_add(0, tokens.to(hidden_states.device), features)[None]
