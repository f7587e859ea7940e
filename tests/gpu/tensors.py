"""The pools of a worker, as an inference engine has them: torch tensors, and what they should hold."""

from __future__ import annotations

import torch

from gpu.messages import Dtype, Seen
from pdcore import AuxField, AuxSchema, KVLayout, MetadataBuffers, Pools
from pdcore.model import Device

LAYERS, PAGES, PAGE_SIZE, HEADS, HEAD_DIM = 4, 96, 16, 8, 128
SLOTS = 64
BEFORE = 0xEE
"""What all bytes are before anything arrives."""
AUX = AuxSchema((AuxField("token", "int64"),))


class Tensors:
    """A K and a V tensor per layer, of shape (PAGES, PAGE_SIZE, HEADS, HEAD_DIM), and aux rows."""

    def __init__(self, device: str, dtype: Dtype, aux_device: Device) -> None:
        element = getattr(torch, dtype)
        shape = (PAGES, PAGE_SIZE, HEADS, HEAD_DIM)
        self.tensors = [torch.empty(shape, dtype=element, device=device) for _ in range(2 * LAYERS)]
        self._bytes = [t.view(torch.uint8).reshape(PAGES, -1) for t in self.tensors]
        for each in self._bytes:
            each.fill_(BEFORE)
        layout = KVLayout.heads(
            layers=range(LAYERS),
            kv_heads=HEADS,
            head_dim=HEAD_DIM,
            page_size=PAGE_SIZE,
            num_pages=PAGES,
            dtype=dtype,
        )
        self.aux = MetadataBuffers(AUX, SLOTS, device=aux_device)
        self.pools = Pools(layout, self.tensors, aux=self.aux)

    def fill(self, seed: int, pages: list[int]) -> None:
        """Fill pages by kernels on the current stream."""
        for number, each in enumerate(self._bytes):
            each[pages] = self._expected(number, seed, pages)

    def look(self, seed: int, sources: list[int], pages: list[int]) -> Seen:
        """Compare on the device, with what pages of the other side were filled with."""
        others = [page for page in range(PAGES) if page not in pages]
        wrong = torch.zeros(len(pages), dtype=torch.bool, device=self.tensors[0].device)
        touched = torch.zeros(len(others), dtype=torch.bool, device=self.tensors[0].device)
        for number, each in enumerate(self._bytes):
            wrong |= (each[pages] != self._expected(number, seed, sources)).any(1)
            touched |= (each[others] != BEFORE).any(1)
        return Seen(int(wrong.sum()), int(touched.sum()))

    def _expected(self, number: int, seed: int, pages: list[int]) -> torch.Tensor:
        each = self._bytes[number]
        first = torch.tensor(pages, device=each.device)[:, None] * 104_729 + number * 7_919 + seed * 1_000_003
        mixed = (first + torch.arange(each.shape[1], device=each.device)) * 2_654_435_761
        return (mixed >> 15).to(torch.uint8)
