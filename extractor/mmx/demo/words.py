"""Vocabularies of the demonstration catalogue: styles, product nouns, filler, brand syllables."""

from __future__ import annotations

# One line per style; the order is the index of the style. Words of a style occur mostly, not only,
# in its items.
STYLES: tuple[tuple[str, ...], ...] = tuple(
    tuple(words.split())
    for words in (
        "harbour anchor rope sailor tide salt lighthouse canvas brass deck gull buoy",
        "orchard apple blossom picnic honey meadow basket gingham pear bee hay clover",
        "loft concrete steel rivet girder exposed pipe grey factory bolt welded raw",
        "neon arcade pixel laser glow synth chrome midnight grid hologram turbo cyber",
        "forest moss pine fern cabin bark lichen trail cedar owl birch ember",
        "desert dune adobe cactus terracotta mesa sun agave clay mirage sand ochre",
        "arctic frost glacier fleece aurora snow polar icicle sledge pale wool drift",
        "baroque gilded velvet ornate cherub scroll opera crimson tassel marble crest lace",
        "zen bamboo pebble bonsai tatami ripple incense calm lotus paper minimal ink",
        "carnival confetti balloon stripes juggler popcorn parade bright drum mask kite polka",
        "attic faded heirloom typewriter postcard patina trunk sepia quilt locket dusty map",
        "studio geometric primary bauhaus cube poster module contrast angle grotesk block line",
    )
)

# Category -> nouns. Which kind of product an item is says nothing about its style.
PRODUCTS: dict[str, tuple[str, ...]] = {
    "Kitchen": ("mug", "teapot", "bowl", "plate", "jug", "tray"),
    "Living": ("lamp", "cushion", "vase", "clock", "rug", "shelf"),
    "Desk": ("notebook", "pen", "folder", "calendar", "stapler", "organiser"),
    "Wear": ("scarf", "cap", "tote", "socks", "belt", "apron"),
    "Play": ("puzzle", "cards", "kaleidoscope", "dominoes", "yo-yo", "whistle"),
}

FILLER: tuple[str, ...] = (
    "quality", "gift", "new", "set", "home", "classic", "everyday", "design", "durable", "light",
    "large", "small", "handmade", "compact", "original", "perfect", "easy", "care", "season",
    "favourite", "pack", "series", "premium",
)  # fmt: skip

BRAND_SYLLABLES: tuple[str, ...] = (
    "kel", "mor", "vant", "lis", "tro", "bri", "osk", "han", "pel", "dru", "nia", "sol",
)  # fmt: skip
