"""The words of the embedded shop: interests with the phrases that are evidence of them, and what says nothing of them."""

INTERESTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("weekend trout fishing", ("wading cold rivers", "tying small flies", "casting from the bank")),
    ("home espresso brewing", ("pulling a ristretto shot", "dialling in the grind", "steaming oat milk")),
    ("small balcony gardening", ("potting herbs and tomatoes", "watering window boxes", "repotting seedlings in spring")),
    ("night sky photography", ("shooting the milky way", "long exposures after dusk", "tracking star trails")),
    ("sourdough bread baking", ("feeding a starter", "scoring a loaf", "proofing dough overnight")),
    ("vintage vinyl collecting", ("digging through record crates", "cleaning a dusty pressing", "lowering the needle")),
    ("long distance cycling", ("climbing mountain passes", "fixing a puncture at the roadside", "riding a hundred miles")),
    ("backyard bird watching", ("filling the seed feeder", "spotting a goldfinch", "keeping a nesting diary")),
    ("winter camping trips", ("sleeping in the snow", "melting ice for tea", "pitching a tent in frost")),
    ("tabletop role playing", ("rolling twenty sided dice", "painting tiny goblins", "drawing dungeon maps")),
    ("homemade candle making", ("pouring soy wax", "trimming cotton wicks", "blending lavender scents")),
    ("beginner guitar practice", ("learning open chords", "changing worn strings", "playing along to a metronome")),
    ("daily morning yoga", ("holding downward dog", "breathing through a sun salutation", "stretching tight hips")),
    ("tropical fish keeping", ("cycling a new aquarium", "trimming java moss", "breeding neon tetras")),
    ("classic motorcycle restoration", ("rebuilding a carburettor", "polishing chrome pipes", "rewiring an old headlamp")),
    ("toddler craft afternoons", ("finger painting with little ones", "gluing paper animals", "keeping small hands busy")),
    (
        "watercolour travel sketching",
        ("drawing street corners abroad", "mixing washes on a park bench", "filling a journal with skies"),
    ),
    ("competitive puppy training", ("rewarding a good recall", "weaving through agility poles", "teaching a patient sit")),
    ("beach volleyball summers", ("spiking over the net", "diving in hot sand", "rinsing off salt and sunscreen")),
    ("mechanical keyboard building", ("lubing tactile switches", "soldering a hotswap board", "choosing retro keycaps")),
    ("wild mushroom foraging", ("finding chanterelles under oaks", "brushing off forest soil", "drying porcini slices")),
    ("marathon race preparation", ("pacing a negative split", "carbo loading on Sundays", "taping sore heels")),
    ("handmade quilt sewing", ("piecing patchwork blocks", "threading a bobbin", "binding the last edge")),
    ("indoor bonsai care", ("wiring a juniper branch", "pruning fine roots", "misting a shallow tray")),
)
"""Interests and, for each, related phrases; both recur word for word over items of every category."""

EVIDENCE = (
    "{} is what it was made for.",
    "It comes into its own for {}.",
    "People who care about {} reach for it first.",
    "Think of {} and you know why it exists.",
    "Many buyers use it for {}.",
    "A quiet favourite among fans of {}.",
)
"""Sentences around the phrase of an interest."""

RELATED = (
    "Just as handy for {}.",
    "It earns its place when {}.",
    "Customers mention {} again and again.",
    "Also good company for {}.",
)
"""Sentences around a related phrase."""

CATEGORIES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Bags", "Backpacks", ("Backpack", "Rucksack")),
    ("Bags", "Pouches", ("Pouch", "Zip Pouch")),
    ("Lighting", "Lamps", ("Clip Lamp", "Table Lamp")),
    ("Clothing", "Jackets", ("Jacket", "Overshirt")),
    ("Clothing", "Gloves", ("Gloves", "Half Finger Gloves")),
    ("Clothing", "Aprons", ("Apron", "Work Apron")),
    ("Kitchen", "Bottles", ("Bottle", "Flask")),
    ("Kitchen", "Mugs", ("Mug", "Travel Cup")),
    ("Stationery", "Notebooks", ("Notebook", "Pocket Logbook")),
    ("Storage", "Boxes", ("Storage Box", "Drawer Case")),
    ("Furniture", "Stools", ("Folding Stool", "Low Stool")),
    ("Tools", "Knives", ("Folding Knife", "Pocket Multitool")),
    ("Home", "Towels", ("Towel", "Cloth Set")),
    ("Electronics", "Timers", ("Timer", "Digital Clock")),
)
"""Department, category and nouns; no interest prefers one."""

BRANDS = ("Arvena", "Bolder & Pine", "Calder", "Dunmore", "Estrid", "Fennimore", "Galten", "Harrow Lane", "Ingvar", "Juno Works")
MATERIALS = (
    "Waxed Canvas",
    "Brushed Steel",
    "Recycled Nylon",
    "Oak",
    "Organic Cotton",
    "Silicone",
    "Merino Wool",
    "Anodised Aluminium",
)
COLOURS = ("Olive", "Charcoal", "Sand", "Navy", "Rust", "Cream", "Forest", "Slate")

FILLER = (
    "This {colour} {noun} from {brand} is made of {material} and built to last.",
    "The {material} feels solid, and the {colour} finish does not fade.",
    "{brand} tests every {noun} by hand before it leaves the workshop.",
    "A clean design in {colour} with reinforced edges.",
    "Comes in a recyclable box with a two year warranty.",
    "Wipes clean in seconds and keeps its shape.",
    "One of the best selling {category} of the season.",
    "The {noun} weighs little, packs flat and is easy to store.",
    "Premium {material}, honest price, free returns.",
    "Now with an improved {material} core and a softer touch.",
)
"""Marketing sentences that say nothing of an interest."""
