"""MovieLens 100K (u.data, u.item), 1M and 10M (ratings.dat, movies.dat), and latest to 32M (ratings.csv, movies.csv)."""

from digr.data.importing.rules import Pick, Reading, Rule, one
from digr.data.importing.sniffing import Layout

GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
RATINGS = ("userId", "movieId", "rating", "timestamp")
ITEM = ("movieId", "title", "release_date", "video_release_date", "imdb_url", *GENRES)
LAYOUTS = (
    (r"u\.data|u[1-5ab]\.(base|test)", Layout("\t", RATINGS)),
    (r"u\.item", Layout("|", ITEM, encoding="latin-1")),
    (r"ratings\.dat", Layout("::", RATINGS, encoding="latin-1")),
    (r"movies\.dat", Layout("::", ("movieId", "title", "genres"), encoding="latin-1")),
)
"""By file name."""


def _with_genres(pick: Pick) -> str:
    """Return the SQL of items whose categories are the genres with flag 1."""
    flagged = ", ".join(f"CASE WHEN {pick(genre)} = '1' THEN '{genre.replace(chr(39), chr(39) * 2)}' END" for genre in GENRES[1:])
    genres = f"CAST(to_json(list_filter([{flagged}], lambda genre: genre IS NOT NULL)) AS VARCHAR)"
    return f"SELECT {pick('movieId')} AS item_id, {pick('title')} AS title, {genres} AS categories FROM source"


OTHERS = r"u\.(user|genre|info|occupation)|u[1-5ab]\.(base|test)|users\.dat|tags\.(csv|dat)|links\.csv|genome-.*\.csv"
NOTE = "users, tags, links and ready-made splits of MovieLens are not read"
INTERACTIONS = one(user_id="userId", item_id="movieId", rating="rating", timestamp="timestamp")
FLAGS = {"item_id": "movieId", "title": "title", "categories": "genre flags"}
MOVIES = ("movieId", "title", "genres")
RULES = (
    Rule(Reading("movielens", "ignored", note=NOTE), OTHERS),
    Rule(Reading("movielens", "interactions", INTERACTIONS), r"u\.data|ratings\.(dat|csv)", RATINGS),
    Rule(Reading("movielens", "items", select=_with_genres, shown=FLAGS), r"u\.item", ITEM),
    Rule(Reading("movielens", "items", one(item_id="movieId", title="title", categories="genres")), r"movies\.(dat|csv)", MOVIES),
)
