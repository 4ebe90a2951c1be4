"""The parts of transformers' Qwen3-VL that are replaced by ones that do the same with less work, and why they may."""

import torch
from torch import nn

from .attention import PassContext


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


def top_layer(
    layer: nn.Module,
    hidden: torch.Tensor,
    rows: torch.Tensor | None,
    positions: tuple[torch.Tensor, torch.Tensor],
    context: PassContext,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A decoder layer after which only some tokens are read: its MLP runs for those alone, which is exact.

    The three steps of transformers' `Qwen3VLTextDecoderLayer.forward` (and its MoE twin's). Keys and values need every
    token; what follows the attention works token by token.

    `rows`: (R,) int64, which tokens; None for all. (1, T, D) -> before the MLP and after it, (1, R, D) each.
    """
    device = layer.input_layernorm.weight.device  # elsewhere only where a checkpoint is spread over several GPUs
    hidden, (cosines, sines) = hidden.to(device), (each.to(device) for each in positions)
    attended, _ = layer.self_attn(
        layer.input_layernorm(hidden), position_embeddings=(cosines, sines), attention_mask=None, context=context
    )
    before = at(hidden + attended, rows)
    return before, before + layer.mlp(layer.post_attention_layernorm(before))


def at(states: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """(1, T, D) -> (1, R, D); all of them for None."""
    return states if rows is None else states.index_select(1, rows.to(states.device))


def add_image_features(hidden_states: torch.Tensor, tokens: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """DeepStack's addition at the images' tokens, in place of transformers' `_deepstack_process`.

    That one gets a mask and waits until the device has counted it; here `tokens` are the indices themselves.
    """
    features = features.to(hidden_states.device, hidden_states.dtype)
    return hidden_states[0].index_add(0, tokens.to(hidden_states.device), features)[None]
