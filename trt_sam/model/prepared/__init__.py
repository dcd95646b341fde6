"""The decoder in two parts: what depends on the image alone, computed once, and what is left for each prompt.

**Why.** In every layer an image position holds a few numbers times vectors that the prompt makes, beside what the image was:
it reads from T tokens with H heads, so it changes by a mixture of H T vectors. With B the image [P, C] (centred and scaled by
constants), Z [J, P] the weights of that mixture, N [J, C] its vectors and s [P] the norms so far,

    X = diag(s) B + Z^T N

exactly: attention adds rows to Z and N, and a LayerNorm scales s and Z by 1 / deviation and centres and scales B and N. The
deviation of a position needs no vector of C numbers either: |s b + N^T z|^2 = s^2 |b|^2 + z (2 s N b + N N^T z). So every
product of X with a constant W is

    X W = diag(s) (B W) + Z^T (N W)

where B W is the image's, computed once, and N W is of J = 8 T + 1 and 16 T + 2 rows instead of 4096. For a click (T = 7) that
leaves 0.48 of the multiply-adds of the absorbed form, and no pass over [4096, 256] before the upscaling.
"""

from trt_sam.model.prepared.decoder import PreparedDecoder
from trt_sam.model.prepared.image import PreparedImage

__all__ = ["PreparedDecoder", "PreparedImage"]
