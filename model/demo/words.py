"""Words for the demo questions: a short list written for it, and made-up ones.

Made-up words keep the model from learning a dictionary: a word it has never
seen must be spelt, turned round or counted just as well as a common one.
"""

from random import Random
from string import ascii_lowercase


def listed(text: str) -> list[str]:
    """Read a list written as one text, which is easier on the eye than quotes."""
    return text.split()


COMMON = listed("""
apple arm autumn ball banana bank barn basket beach bean bear bed bell bird
blue boat book bottle bread bridge brook brown brush bucket butter button cake
candle canyon carpet cart castle cat chair chalk cheese cherry circle city
cliff clock cloud coat coffee coin copper corn cotton cream cup curtain dance
desert desk dinner dog door dragon dream drum duck eagle earth east echo egg
elbow ember engine evening eye falcon farm father feather fern field finger
fire fish flag flame flood floor flower forest fork fox friend frog fruit
garden gate ghost giant glass glove goat gold grain grape grass green hammer
hand harbor hat hazel head heart hedge hill honey horse house ice ink iron
island ivory jacket jar jewel juice jungle kettle key king kitchen kite knife
ladder lake lamp lantern leaf lemon letter light lily lion lizard maple marble
market meadow metal milk mill mirror monkey moon morning mother mountain mouse
music nail needle nest night north nut oak ocean olive onion orange otter owl
paint palace paper park pearl pebble pencil penstock pepper piano picture pillow
pine pipe planet plate plum pocket pond potato prince pump purple queen rabbit
radio rain raven red rice ring river road robin rocket roof root rope rose
saddle sail salt sand school sea seed shadow sheep shell ship shoe silver sky
snow soap song south spider spoon spring square star station stone storm stove
strawberry street sugar summer sun table tail tea thread thunder tiger toast
tomato torch tower town train tree trumpet tulip tunnel turbine turtle valley
valve velvet village violin wagon wall water wave west wheat wheel whistle
willow wind window winter wolf wood wool yellow zebra
""")

_ONSETS = listed(
    "b c d f g h j k l m n p r s t v w z bl br ch cl cr dr fl fr gl gr pl pr qu sh sl sn sp st str sw th tr tw y x"
)
_VOWELS = listed("a e i o u a e i o ai ea ee ie oa oo ou")
_CODAS = listed("n r l s t m d p k g x ck nd ng nt rd rk st ll ss")


def made_up(rng: Random, longest: int) -> str:
    """Return a pronounceable word nobody wrote down, of 3 to `longest` letters."""
    wanted = rng.randint(3, longest)
    parts: list[str] = []
    size = 0
    while size < wanted:
        parts += [rng.choice(_ONSETS), rng.choice(_VOWELS)]
        if rng.random() < 0.4:
            parts.append(rng.choice(_CODAS))
        size = sum(map(len, parts))
    return "".join(parts)[:wanted]


def letters(rng: Random, longest: int) -> str:
    """Return any letters at all, so that unpronounceable words work as well."""
    return "".join(rng.choices(ascii_lowercase, k=rng.randint(2, longest)))


def word(rng: Random, longest: int = 10) -> str:
    """Return a common word, a made-up one or plain letters, none too long."""
    roll = rng.random()
    if roll < 0.2:
        common = rng.choice(COMMON)
        return common if len(common) <= longest else common[:longest]
    return made_up(rng, longest) if roll < 0.8 else letters(rng, longest)
