"""Triton kernels, imported as nanort.kernels: tensors in, tensors out; they know nothing of nanort.

One file an operator, named like it. A kernel is called ``kernel(*tensors, out=, scratch=, sms=, **static)``: it writes
to ``out``, or to what it allocates, and returns that. ``sms`` bounds the SMs that it occupies: its grid is as many
programs as those hold at once, and each of them does one piece of the work after another.
"""
