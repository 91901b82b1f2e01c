"""Google Merchant feeds: tab-separated text, RSS 2.0 or Atom; the XML has the same names without their prefix."""

from digr.data.importing.rules import Reading, Rule, one

FEED = one(
    item_id="id",
    title="title",
    description=("description", "summary"),
    brand="brand",
    categories=("product_type", "product type", "google_product_category", "google product category"),
    price="price",
    image=("image_link", "image link"),
)
RULES = (
    Rule(Reading("merchant", "items", FEED), needs=("id", "title", "image_link")),
    Rule(Reading("merchant", "items", FEED), needs=("id", "title", "image link")),
    Rule(Reading("merchant", "items", FEED), r".*\.xml", ("id", "title", "price")),
)
LAYOUTS = ()
