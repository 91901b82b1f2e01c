"""The words of the embedded shop: interests, phrases that are evidence of them, and sentences without evidence."""

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
"""Interests and related phrases of each; both recur verbatim in items of every category."""

EVIDENCE = (
    "Made for {}.",
    "Perfect for {}.",
    "A favourite for {}.",
    "At its best in {}.",
    "Made with {} in mind.",
    "Ideal for {}.",
    "Popular for {}.",
    "Ready for {}.",
    "Our answer to {}.",
)
"""Sentences around the phrase of an interest; their other words are too common to become key phrases."""

RELATED = (
    "Handy for {} and {}.",
    "Just right for {} or {}.",
    "Helps with {} and {}.",
    "Good for {}, for {} too.",
    "Suits {} and {}.",
)
"""Sentences around two more phrases."""

CATEGORIES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Bags", "Backpacks", ("Backpack", "Rucksack")),
    ("Bags", "Pouches", ("Pouch", "Zip Pouch")),
    ("Lighting", "Lamps", ("Lamp", "Table Lamp")),
    ("Clothing", "Jackets", ("Jacket", "Overshirt")),
    ("Clothing", "Gloves", ("Gloves", "Mittens")),
    ("Clothing", "Aprons", ("Apron", "Work Apron")),
    ("Kitchen", "Bottles", ("Bottle", "Flask")),
    ("Kitchen", "Mugs", ("Mug", "Cup")),
    ("Stationery", "Notebooks", ("Notebook", "Logbook")),
    ("Storage", "Boxes", ("Storage Box", "Case")),
    ("Furniture", "Stools", ("Stool", "Folding Stool")),
    ("Tools", "Knives", ("Folding Knife", "Multitool")),
    ("Home", "Towels", ("Towel", "Cloth")),
    ("Electronics", "Timers", ("Timer", "Clock")),
)
"""Department, category and nouns; no interest prefers one."""

BRANDS = ("Arvena", "Bolder", "Calder", "Dunmore", "Estrid", "Fennimore", "Galten", "Harrow", "Ingvar", "Juno")
MATERIALS = ("Canvas", "Steel", "Recycled Nylon", "Oak", "Organic Cotton", "Silicone", "Wool", "Aluminium")
COLOURS = ("Olive", "Charcoal", "Sand", "Navy", "Rust", "Cream", "Forest", "Slate")

FILLER = (
    "Material: {material}; colour: {colour}; made by {brand}.",
    "As a {noun}: solid, and its finish does not fade.",
    "Tested by hand before it leaves the workshop.",
    "A clean design with reinforced edges, in {colour}.",
    "Comes in a recyclable box with a two year warranty.",
    "Wipes clean in seconds and keeps its shape.",
    "One of the best sellers of the season among all {category}.",
    "It is a {noun}; it weighs little, packs flat and is easy to store.",
    "Premium quality, honest price, free returns.",
    "Now with an improved core and a softer touch: {material}.",
)
"""Marketing sentences without evidence of an interest."""
