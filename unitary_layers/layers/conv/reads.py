"""How often a convolution reads a pixel, on which its Lipschitz constant depends."""

from math import ceil, gcd

# Note [Lipschitz constant of a kernel]
# A convolution takes the patches of its input to its outputs by the unfolded kernel. A patch holds copies of pixels, so
# the squared length of all patches together is that of the input with each pixel counted as often as it is read. With
# orthonormal rows or columns the unfolded kernel makes nothing longer. So the Lipschitz constant is at most the root of
# the largest number of reads, a product of those of the sides. Along a side, tap t of output p reads place s p + d t of
# the padded input, with stride s and dilation d. So two taps read the same place only where d t leaves the same
# remainder modulo s: at most ceil(k / (s / gcd(s, d))) of k taps do, which is ceil(k / s) for d = 1. Zeros around the
# image add no reads. The other paddings repeat pixels, and the reads of all copies add up. Circular padding of at most
# d (k - 1) pixels, that of padding="same", has no tap that reads a pixel twice, so there are at most k reads.
# A transposed convolution is the adjoint of one that is padded with zeros, and has its constant.


def most_reads(kernel: int, stride: int, dilation: int, padding: tuple[int, int], mode: str) -> int:
    """How often one pixel is read at most, along one side and for every size of input.

    Args:
        kernel: number of taps.
        stride: of the outputs.
        dilation: of the taps.
        padding: pixels before and after.
        mode: "zeros", "reflect", "replicate" or "circular".
    """
    apart, span = stride // gcd(stride, dilation), dilation * (kernel - 1)
    once = ceil(kernel / apart)  # of one place of the padded input
    if mode == "zeros":
        return once
    if mode == "replicate":  # all copies are of the first or the last pixel
        ends = [
            sum((end - dilation * t) // stride + 1 for t in range(min(kernel, end // dilation + 1))) for end in padding
        ]
        return max(once, *ends, kernel * ((sum(padding) - span) // stride + 1))  # or of the only pixel
    copies = sum(min(once, ceil(ceil(pad / dilation) / apart)) for pad in padding)
    return min(kernel, once + copies) if mode == "circular" and sum(padding) <= span else once + copies
