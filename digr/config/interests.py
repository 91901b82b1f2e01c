"""Mining of interests, their reward labels, and the item vectors made of them."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from digr.config.base import Section
from digr.config.models import EncoderConfig, ModelConfig, PairEncoderConfig, PhraseEncoderConfig
from digr.config.presets import find_recording


class VllmModel(Section):
    """A local language or vision-language model that vLLM runs on the cluster."""

    kind: Literal["vllm"] = "vllm"
    """Selects this kind of table."""
    name: str
    """Name of the miner in all output tables; unique in the run."""
    model: str
    """Local folder or hub name."""
    modality: Literal["text", "image", "both"] = "text"
    """What the prompt shows of an owner: its text, its image or both."""
    max_model_len: int = Field(4096, ge=64)
    """Context length of the engine, tokens: prompt and response together."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that one engine spans, all on one node; an error if no node has that many."""
    concurrency: int = Field(1, ge=1)
    """Most engines that run at once; fewer run if the cluster has no room for all."""
    batch_size: int = Field(64, ge=1)
    """Prompts per batch; an engine works on up to eight batches at a time."""
    on_cpu: bool = False
    """Use the CPU build of vLLM: one logical CPU per engine, eager mode."""


class VllmMiner(VllmModel):
    """A local model that mines interests."""

    max_tokens: int = Field(512, ge=8)
    """Longest response, tokens."""
    temperature: float = Field(0.0, ge=0, le=2)
    """Sampling temperature; 0 always takes the most probable token."""


class EndpointModel(Section):
    """A model behind an endpoint that speaks the OpenAI chat protocol."""

    kind: Literal["openai"] = "openai"
    """Selects this kind of table."""
    name: str
    """Name of the miner in all output tables; unique in the run."""
    base_url: str
    """URL of the endpoint, including /v1."""
    model: str
    """Model name at the endpoint."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the API key; never put the key itself into a config."""
    modality: Literal["text", "image", "both"] = "text"
    """What the prompt shows of an owner: its text, its image or both."""
    json_schema: bool = True
    """Ask the endpoint to constrain its response to the JSON schema."""
    plain_schema: bool = False
    """Leave lengths and ranges (minLength, maxItems, maximum and so on) out of the schema, because some endpoints refuse them."""
    max_tokens: int = Field(512, ge=8)
    """Longest response, tokens, including what a reasoning model thinks."""
    token_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name of the request field that carries `max_tokens`; newer OpenAI models accept only "max_completion_tokens"."""
    temperature: float | None = Field(None, ge=0, le=2)
    """Sampling temperature; unset sends none, so the endpoint's own default applies."""
    reasoning_effort: str = ""
    """How long a reasoning model thinks: one of the endpoint's own values, such as "low"; empty sends none."""
    extra_body: dict[str, Any] = Field({})
    """Further fields of the request's body, such as {top_p = 0.9}."""
    concurrency: int = Field(8, ge=1, le=1024)
    """Most requests in flight at once."""
    requests_per_minute: float = Field(0.0, ge=0)
    """Most requests per minute, retries included; 0 is no limit other than `concurrency`."""
    max_retries: int = Field(5, ge=0)
    """Retries of a request that fails with status 408, 409, 429 or 5xx, or without a connection."""
    timeout_seconds: float = Field(60.0, gt=0)
    """Longest wait for one response, seconds."""
    usd_per_million_input_tokens: float = Field(0.0, ge=0)
    """Price of a million prompt tokens, USD, for the cost columns and `interests.max_usd`."""
    usd_per_million_output_tokens: float = Field(0.0, ge=0)
    """Price of a million response tokens, USD, for the cost columns and `interests.max_usd`."""


class OpenAIMiner(EndpointModel):
    """An endpoint that mines interests."""


class ReplayMiner(Section):
    """Responses recorded earlier, in the columns of `interest_responses`."""

    kind: Literal["replay"] = "replay"
    """Selects this kind of table."""
    name: str
    """Name of the miner in all output tables; unique in the run."""
    path: str
    """Parquet file or folder of recorded responses, relative to the working directory. A path below configs/ that does not
    exist there is read from the presets of the installed package."""
    recorded_miner: str = ""
    """Replay only the rows of this recorded miner; empty replays all rows and needs one recorded miner per owner."""

    @property
    def recording(self) -> str:
        """Where the recorded responses lie."""
        return find_recording(self.path)


class ExtractiveMiner(Section):
    """No language model: key phrases of the owner's own text, ranked by a sentence encoder."""

    kind: Literal["extractive"] = "extractive"
    """Selects this kind of table."""
    name: str = "extractive"
    """Name of the miner in all output tables; unique in the run."""
    max_words: int = Field(5, ge=1, le=9)
    """Longest phrase, words."""
    min_owners: int = Field(2, ge=1)
    """Keep a phrase only if the texts of at least this many owners contain it."""


Miner = Annotated[VllmMiner | OpenAIMiner | ReplayMiner | ExtractiveMiner, Field(discriminator="kind")]


class InterestsConfig(Section):
    """MLIM: which miners run, whose interests they mine, and how their answers merge."""

    miners: tuple[Miner, ...] = (ExtractiveMiner(),)
    """Miners that all run on each owner; each needs its own name."""
    owners: tuple[Literal["item", "user"], ...] = ("item",)
    """Owners, whose interests are mined: items, users or both."""
    max_interests: int = Field(5, ge=1, le=20)
    """Interests kept per owner, strongest first."""
    merge_similarity: float = Field(0.9, ge=0, le=1)
    """Phrases of two miners with at least this cosine similarity merge into one interest."""
    max_text_chars: int = Field(1200, ge=50)
    """Most characters of an owner's text that a miner sees."""
    encoder: PhraseEncoderConfig = PhraseEncoderConfig()
    """Sentence encoder that compares phrases."""
    max_image_bytes: int = Field(10_000_000, ge=1024)
    """Largest image file that is read, bytes; a larger one counts as broken."""
    max_image_side: int = Field(448, ge=16, le=4096)
    """Longest side to which an image is scaled down before a miner sees it, pixels."""
    max_tokens_total: int = Field(0, ge=0, exclude=True)
    """Most tokens, read and written, that the miners and the judge of `labels` may use together in this run. The job stops
    at this cap; raise it and run again to continue. 0 is no cap."""
    max_usd: float = Field(0.0, ge=0, exclude=True)
    """Most money that the miners and the judge of `labels` may cost together in this run, USD. The job stops at this cap;
    raise it and run again to continue. 0 is no cap."""
    max_failed_rate: float = Field(0.5, ge=0, le=1, exclude=True)
    """The job stops if more than this share of a miner's or the judge's requests end as "error" (no answer). The next run
    sends those requests again."""
    min_yield_rate: float = Field(0.05, ge=0, le=1, exclude=True)
    """The job stops, and shows three answers, if fewer than this share of the owners get an interest, overall or from one
    language model. 0 never stops it."""
    retry_failed: bool = Field(False, exclude=True)
    """Also ask again where an answer held no interest; needs --force. Does not change the digest of the result."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> "InterestsConfig":
        names = [miner.name for miner in self.miners]
        if len(set(names)) != len(names):
            raise ValueError(f"interests.miners: names must differ, found {names}")
        return self


class ClassifierConfig(Section):
    """RLDI: the classifier that tells trusted interests from untrusted ones."""

    base: PairEncoderConfig = PairEncoderConfig()
    """Sentence encoder below the trained heads."""
    judged_run: str = ""
    """Folder of an earlier run whose judge labelled these interests; those it rejected are not positives. Empty uses none."""
    max_pairs: int = Field(16000, ge=16)
    """Most mined interests to train on."""
    epochs: int = Field(10, ge=1)
    """Passes over these interests."""
    batch_size: int = Field(256, ge=1)
    """Pairs of item and interest per step, over all workers; the other pairs of a worker serve as negatives."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    folds: int = Field(4, ge=2, le=20)
    """Folds of the items, with one head each: a head trains on the other folds and labels the interests of its own."""
    valid_share: float = Field(0.15, gt=0, lt=0.5)
    """Share of items held out for calibration and evaluation."""


class VllmJudge(VllmModel):
    """A language model run by vLLM that answers yes or no; its probability of "yes" is that of the label.

    It writes one token, of which only the probabilities are read, so there is no temperature and no length to choose.
    """

    name: str = "judge"
    """Name of the judge in messages and in `interest_verdicts`."""
    modality: Literal["text", "both"] = "text"
    """How to judge an interest that only miners with an image found: "both" shows the item's text and image; "text" shows a
    caption by a miner of modality "image", and gives no verdict (counted) where there is none."""
    max_tokens: ClassVar[int] = 1


class OpenAIJudge(EndpointModel):
    """An endpoint that answers yes or no."""

    name: str = "judge"
    """Name of the judge in messages and in `interest_verdicts`."""
    modality: Literal["text", "both"] = "text"
    """How to judge an interest that only miners with an image found: "both" shows the item's text and image; "text" shows a
    caption by a miner of modality "image", and gives no verdict (counted) where there is none."""
    logprobs: bool = True
    """Read the probability of "yes" from log-probabilities; false asks for it as JSON, for endpoints without them."""
    max_tokens: int = Field(16, ge=1)
    """Longest answer, tokens, including what a reasoning model thinks."""


LanguageModel = VllmMiner | VllmJudge | EndpointModel
"""A model that is asked by prompts."""


class LabelsConfig(Section):
    """RLDI: which interests are trusted."""

    labelers: tuple[Literal["classifier", "judge", "behavioural"], ...] = Field(("classifier",), min_length=1)
    """Labelers to use; a labeler may give no opinion on an interest."""
    combine: Literal["mean", "all", "any"] = "mean"
    """How labelers combine: mean of their log-odds, "all" takes the lowest probability, "any" takes the highest."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """An interest with at least this probability is labelled 1 (trusted)."""
    judge: Annotated[VllmJudge | OpenAIJudge, Field(discriminator="kind")] | None = None
    """Model that judges interests; required if `labelers` contains "judge"."""
    min_lift: float = Field(2.0, ge=1)
    """Behavioural labeler: items of a trusted interest follow each other at least this many times as often as by chance."""

    @model_validator(mode="after")
    def _a_judge_is_described(self) -> "LabelsConfig":
        if len(set(self.labelers)) != len(self.labelers):
            raise ValueError(f"labels.labelers: each once, found {list(self.labelers)}")
        if "judge" in self.labelers and self.judge is None:
            raise ValueError(
                "labels.judge: missing although labels.labelers has 'judge'; give labels.judge={kind=..., model=...}"
            )
        return self


class EmbeddingsConfig(Section):
    """IEID: one vector per item from its text and interests."""

    encoder: EncoderConfig = EncoderConfig()
    """Sentence encoder of texts and interests."""
    interests: Literal["none", "all", "trusted"] = "trusted"
    """Which interests of an item enter its vector."""
    interest_weight: float = Field(0.5, ge=0, le=1)
    """Weight of the interests' mean vector in the item's vector; the text vector has 1 minus this weight."""
    without_miners: tuple[str, ...] = ()
    """Names of miners; interests that only these found are left out. As an ablation, this measures what a miner adds."""
    image_encoder: ModelConfig = ModelConfig()
    """Image encoder, such as CLIP or SigLIP; an empty name leaves images out."""
