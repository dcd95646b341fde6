"""What a service allows, keeps and waits for."""

from __future__ import annotations

import dataclasses
import ipaddress
from dataclasses import dataclass

from trt_sam.errors import InputError

__all__ = ["ServeSettings", "is_loopback"]


@dataclass(frozen=True)
class ServeSettings:
    """The bounds of a service; each is at least 1."""

    images: int = 64
    """Images that are kept; the least recently used goes first."""
    image_seconds: int = 1800
    """After this long without use an image goes."""
    masks_per_image: int = 16
    """Earlier masks of an image that a request may name, 256 KiB each: together as much as its embedding."""
    body_bytes: int = 32 << 20
    """Most bytes of a picture, and of a request of KServe."""
    prompt_bytes: int = 1 << 20
    """Most bytes of any other request."""
    bodies_bytes: int = 256 << 20
    """Most bytes of all requests that are being read."""
    pixels: int = 36_000_000
    """Most pixels of a picture."""
    points: int = 256
    """Most points of a request."""
    boxes: int = 64
    """Most boxes of a request."""
    waiting_clicks: int = 32
    """Prompts that may wait for the runner; more are told to come again."""
    waiting_images: int = 8
    """Pictures that may wait for the image encoder."""
    waiting_everything: int = 2
    """Requests for everything in a picture that may wait; one is computed at a time, clicks go between its parts."""
    read_seconds: int = 30
    """In which a request must have arrived."""
    answer_seconds: int = 60
    """In which the runner must have answered."""
    everything_seconds: int = 300
    """In which everything in a picture must have been found."""
    connections: int = 1000
    """Most connections that are open."""
    token: str = ""
    """What clients must send as `Authorization: Bearer`; empty for none, which only loopback may have."""
    hosts: tuple[str, ...] = ()
    """Names that the Host header may have where there is no token; empty for those of loopback."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 1:
                raise InputError(f"{field.name} is {value}, must be at least 1")
        if self.token and (not self.token.isascii() or not self.token.isprintable() or " " in self.token):
            raise InputError("the token holds a space or a character beyond ASCII; take letters, digits, - and _")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`, an address or "localhost"."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
