"""The loops over tokens and frames, compiled: vocabulary, mixer, token coder over the binary range
coder, frame heads; and the engine that runs exact models on the processor.

Owns nothing itself: `_core` is built from the C++ beside this file, where each header states its
algorithm and its invariants (range_coder.hpp, frequencies.hpp, vocabulary.hpp, mixer.hpp,
token_coder.hpp, layout.hpp, engine.hpp). Imports nothing. Any thread may call anything
here; the loops run without the interpreter's lock. Wrong arguments are ValueError or TypeError:
these are errors of the calling code, which gives damage and bad files their names.
"""

from lmfs.native._core import (
    PROBABILITY_BITS,
    Engine,
    Lanes,
    MixDecoder,
    MixEncoder,
    Mixer,
    MixerProfile,
    TokenDecoder,
    TokenEncoder,
    Vocabulary,
    advance,
    encode,
    parse_heads,
    usable_isas,
)

__all__ = [
    "PROBABILITY_BITS",
    "Engine",
    "Lanes",
    "MixDecoder",
    "MixEncoder",
    "Mixer",
    "MixerProfile",
    "TokenDecoder",
    "TokenEncoder",
    "Vocabulary",
    "advance",
    "encode",
    "parse_heads",
    "usable_isas",
]
