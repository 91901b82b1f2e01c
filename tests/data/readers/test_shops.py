"""What shops export: Shopify's products and orders, Google Merchant's feeds."""

import pytest

from tests.data.readers.importing import imported, rows, seconds, write

PRODUCTS = (
    "Handle,Title,Body (HTML),Vendor,Product Category,Type,Tags,Published,Option1 Value,Variant SKU,Variant Price,Image Src,"
    "Variant Image,Status\n"
    'pan,"Pan, 28 cm",<p>Fries <b>all</b>.</p>,Acme,Home > Kitchen,Cookware,"sale, iron",true,Black,PAN-B,29.90,https://c/pan1.jpg,https://c/black.jpg,active\n'
    "pan,,,,,,,,Red,PAN-R,31.90,https://c/pan2.jpg,,\n"
    "pan,,,,,,,,,,,https://c/pan3.jpg,,\n"
    "pot,Pot,,Acme,,,,true,Default Title,POT-1,,,,active\n"
)
ORDERS = (
    "Name,Email,Financial Status,Currency,Created at,Lineitem quantity,Lineitem name,Lineitem price,Lineitem sku,Customer ID\n"
    "#1002,ann@x.org,paid,EUR,2024-03-01 10:00:00 +0100,1,Pan - Black,29.90,{first},77\n"
    "#1002,,,,,2,Pot,12.00,{second},\n"
    "#1001,,paid,EUR,2024-02-01 09:00:00 +0100,1,Pot,12.00,{second},78\n"
    "#1000,bob@x.org,paid,EUR,2024-01-01 09:00:00 +0100,1,Gift,5.00,,79\n"
)


NEW_NAMES = {"Handle": "URL handle", "Body (HTML)": "Description", "Product Category": "Product category", "Variant SKU": "SKU",
             "Variant Price": "Price", "Image Src": "Product image URL", "Variant Image": "Variant image URL"}  # fmt: skip


@pytest.mark.parametrize("names", [{}, NEW_NAMES], ids=["old names", "new names"])
def test_a_shopify_item_is_a_variant_where_orders_name_skus(tmp_path, names):
    head, _, body = PRODUCTS.partition("\n")
    head = ",".join(names.get(name, name) for name in head.split(","))
    orders = ORDERS.format(first="PAN-B", second="POT-1")
    write(tmp_path / "in", {"orders_export.csv": orders, "products_export.csv": f"{head}\n{body}"})
    facts, _ = imported(tmp_path / "out", tmp_path / "in")
    assert seconds(tmp_path / "out") == [
        ("ann@x.org", "PAN-B", 1709283600),
        ("ann@x.org", "POT-1", 1709283600),
        ("78", "POT-1", 1706774400),
    ]
    assert facts["dropped"]["interactions"] == {"no item id": 1}
    pan = {"title": "Pan, 28 cm", "description": "<p>Fries <b>all</b>.</p>", "brand": "Acme"}
    pan |= {"categories": ["Home", "Kitchen", "Cookware", "sale", "iron"]}
    assert rows(tmp_path / "out", "items") == [
        {"item_id": "PAN-B", "price": 29.9, "image_url": "https://c/black.jpg"} | pan,
        {"item_id": "PAN-R", "price": 31.9, "image_url": "https://c/pan1.jpg"} | pan,
        {"item_id": "POT-1", "title": "Pot", "brand": "Acme"},
    ]


def test_a_shopify_item_is_a_product_where_orders_name_handles(tmp_path):
    write(tmp_path / "in", {"orders_export.csv": ORDERS.format(first="pan", second="pot"), "products_export.csv": PRODUCTS})
    imported(tmp_path / "out", tmp_path / "in")
    found = rows(tmp_path / "out", "items")
    assert [(item["item_id"], item.get("price"), item.get("image_url")) for item in found] == [
        ("pan", 29.9, "https://c/pan1.jpg"),
        ("pot", None, None),
    ]


def test_shopify_orders_alone_name_their_items(tmp_path):
    write(tmp_path / "in", {"orders_export.csv": ORDERS.format(first="PAN-B", second="POT-1")})
    imported(tmp_path / "out", tmp_path / "in")
    assert rows(tmp_path / "out", "items") == [
        {"item_id": "PAN-B", "title": "Pan - Black", "price": 29.9, "currency": "EUR"},
        {"item_id": "POT-1", "title": "Pot", "price": 12.0, "currency": "EUR"},
    ]


FEED = [
    {"id": "0012", "title": "Pan & lid", "description": "Fries.", "image_link": "https://c/1.jpg", "price": "1,299.00 EUR",
     "brand": "Acme",      "product_type": "Home > Kitchen"},
    {"id": "B2", "title": "Pot", "description": "Boils.", "image_link": "https://c/2.jpg", "price": "15 USD",
     "brand": "Acme", "product_type": ""},
]  # fmt: skip
EXPECTED = [
    {"item_id": "0012", "title": "Pan & lid", "description": "Fries.", "brand": "Acme",
     "categories": ["Home", "Kitchen"], "price": 1299.0, "currency": "EUR", "image_url": "https://c/1.jpg"},
    {"item_id": "B2", "title": "Pot", "description": "Boils.", "brand": "Acme", "price": 15.0,
     "currency": "USD", "image_url": "https://c/2.jpg"},
]  # fmt: skip


def _xml(form: str) -> str:
    tag = "item" if form == "rss" else "entry"
    escape = lambda text: text.replace("&", "&amp;").replace(">", "&gt;")  # noqa: E731
    body = "".join(
        f"<{tag}>" + "".join(f"<g:{name}>{escape(text)}</g:{name}>" for name, text in row.items()) + f"</{tag}>\n" for row in FEED
    )
    space = 'xmlns:g="http://base.google.com/ns/1.0"'
    if form == "rss":
        return f'<?xml version="1.0"?>\n<rss {space} version="2.0"><channel><title>Shop</title><link>https://c</link>{body}</channel></rss>'
    return f'<feed xmlns="http://www.w3.org/2005/Atom" {space}><title>Shop</title>{body}</feed>'


@pytest.mark.parametrize("form", ["tsv", "rss", "atom"])
def test_merchant_feeds_are_read_in_all_three_forms(tmp_path, form):
    table = "\n".join(["\t".join(name.replace("_", " ") for name in FEED[0])] + ["\t".join(row.values()) for row in FEED])
    feed = {"feed.txt": table} if form == "tsv" else {"feed.xml": _xml(form)}
    write(tmp_path / "in", feed | {"log.csv": "user_id,item_id\nu,0012\n"})
    facts, _ = imported(tmp_path / "out", tmp_path / "in")
    assert "merchant" in {file["format"] for file in facts["files"]}
    assert rows(tmp_path / "out", "items") == EXPECTED


def test_a_feed_with_entities_of_its_own_is_refused(tmp_path):
    bomb = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa">]><rss><channel><item><id>&a;</id></item></channel></rss>'
    write(tmp_path / "in", {"feed.xml": bomb, "log.csv": "user_id,item_id\nu,0012\n"})
    with pytest.raises(ValueError, match=r"feed\.xml: not valid XML"):
        imported(tmp_path / "out", tmp_path / "in")


def test_an_unknown_format_and_a_file_of_another_are_named(tmp_path):
    write(tmp_path / "in", {"log.csv": "user_id,item_id\nu,a\n", "items.csv": "item_id,title\na,Pan\n"})
    with pytest.raises(ValueError, match="--format movielense: unknown; expected one of names, amazon-2014"):
        imported(tmp_path / "out", tmp_path / "in", format="movielense")
    with pytest.raises(ValueError, match=r"items\.csv: not a file of shopify; its columns are item_id, title"):
        imported(tmp_path / "out", tmp_path / "in", format="shopify")
