"""Mining of interests, their reward labels, and the item vectors made of them."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from digr.config.base import Section
from digr.config.models import EncoderConfig, ModelConfig, PairEncoderConfig, PhraseEncoderConfig
from digr.config.presets import find_recording


class VllmModel(Section):
    """A local language or vision-language model that vLLM runs on the cluster."""

    kind: Literal["vllm"] = "vllm"
    """Says which of these tables it is."""
    name: str
    """Name of the miner in every table."""
    model: str
    """Local folder or hub name."""
    modality: Literal["text", "image", "both"] = "text"
    """What the prompt shows."""
    max_model_len: int = Field(4096, ge=64)
    """Context of the engine, tokens."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs of one engine, all of one node; more than a node has is an error."""
    concurrency: int = Field(1, ge=1)
    """Engines, at most: fewer run where the cluster has room for fewer."""
    batch_size: int = Field(64, ge=1)
    """Prompts handed to an engine at once; it works on up to eight such batches."""
    on_cpu: bool = False
    """Run the CPU build of vLLM: one logical CPU per engine, eager mode."""


class VllmMiner(VllmModel):
    """A local model that mines interests."""

    max_tokens: int = Field(512, ge=8)
    """Longest response, tokens."""
    temperature: float = Field(0.0, ge=0, le=2)
    """Sampling temperature."""


class EndpointModel(Section):
    """A model behind an endpoint that speaks the OpenAI chat protocol."""

    kind: Literal["openai"] = "openai"
    """Says which of these tables it is."""
    name: str
    """Name of the miner in every table."""
    base_url: str
    """Address of the endpoint, up to and with /v1."""
    model: str
    """Model name at the endpoint."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself is never in a config."""
    modality: Literal["text", "image", "both"] = "text"
    """What the prompt shows."""
    json_schema: bool = True
    """Ask the endpoint to hold the response to the JSON schema."""
    plain_schema: bool = False
    """Leave lengths and ranges out of the schema (minLength, maxItems, maximum and so on), which some endpoints refuse."""
    max_tokens: int = Field(512, ge=8)
    """Longest response, tokens; a reasoning model's thoughts count."""
    token_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Field of the request that carries `max_tokens`; newer models of OpenAI take only the second."""
    temperature: float | None = Field(None, ge=0, le=2)
    """Sampling temperature; unset leaves it out of the request, so that the endpoint's own holds."""
    reasoning_effort: str = ""
    """How long a reasoning model thinks, in the endpoint's words, such as "low"; empty leaves it out of the request."""
    extra_body: dict[str, Any] = Field({})
    """Further fields of the request's body, such as {top_p = 0.9}."""
    concurrency: int = Field(8, ge=1, le=1024)
    """Requests in flight."""
    requests_per_minute: float = Field(0.0, ge=0)
    """Most requests sent in a minute, retries included; 0 sends as many as `concurrency` allows."""
    max_retries: int = Field(5, ge=0)
    """Retries of a request that failed with 408, 409, 429, 5xx or no connection."""
    timeout_seconds: float = Field(60.0, gt=0)
    """Longest wait for one response."""
    usd_per_million_input_tokens: float = Field(0.0, ge=0)
    """Price, for the cost columns and the budget."""
    usd_per_million_output_tokens: float = Field(0.0, ge=0)
    """Price, for the cost columns and the budget."""


class OpenAIMiner(EndpointModel):
    """An endpoint that mines interests."""


class ReplayMiner(Section):
    """Responses recorded earlier, in the columns of `interest_responses`."""

    kind: Literal["replay"] = "replay"
    """Says which of these tables it is."""
    name: str
    """Name of the miner in every table."""
    path: str
    """Parquet file or folder of recorded responses, relative to the working directory; a path below configs/ that does not
    exist there is looked for among the presets of the installed package."""
    recorded_miner: str = ""
    """Replay only rows of this recorded miner; empty takes all, one row per owner."""

    @property
    def recording(self) -> str:
        """Where the recorded responses lie."""
        return find_recording(self.path)


class ExtractiveMiner(Section):
    """No language model: key phrases of the owner's own text, ranked by a sentence encoder."""

    kind: Literal["extractive"] = "extractive"
    """Says which of these tables it is."""
    name: str = "extractive"
    """Name of the miner in every table."""
    max_words: int = Field(5, ge=1, le=9)
    """Longest phrase, words."""
    min_owners: int = Field(2, ge=1)
    """A phrase counts only if at least this many owners' texts contain it."""


Miner = Annotated[VllmMiner | OpenAIMiner | ReplayMiner | ExtractiveMiner, Field(discriminator="kind")]


class InterestsConfig(Section):
    """MLIM: who mines interests, of whom, and how their answers merge."""

    miners: tuple[Miner, ...] = (ExtractiveMiner(),)
    """Any number of miners, each with its own name."""
    owners: tuple[Literal["item", "user"], ...] = ("item",)
    """Whose interests are mined."""
    max_interests: int = Field(5, ge=1, le=20)
    """Interests kept of an owner, the strongest."""
    merge_similarity: float = Field(0.9, ge=0, le=1)
    """Cosine from which phrases of two miners count as one interest."""
    max_text_chars: int = Field(1200, ge=50)
    """Characters of an owner's text shown to a miner."""
    encoder: PhraseEncoderConfig = PhraseEncoderConfig()
    """Sentence encoder that compares phrases."""
    max_image_bytes: int = Field(10_000_000, ge=1024)
    """Largest image file read; a larger one counts as broken."""
    max_image_side: int = Field(448, ge=16, le=4096)
    """Images are scaled down to this side before a miner sees them, pixels."""
    max_tokens_total: int = Field(0, ge=0, exclude=True)
    """Tokens, read and written, that this run's ledgers may hold: miners and the judge of `labels` together. The job stops
    there and can go on. 0 is no cap."""
    max_usd: float = Field(0.0, ge=0, exclude=True)
    """Money that this run's ledgers may hold, USD: miners and the judge of `labels` together. The job stops there and can
    go on. 0 is no cap."""
    max_failed_rate: float = Field(0.5, ge=0, le=1, exclude=True)
    """Share of a miner's or the judge's requests that may end as "error" (no answer came); above it the job stops. The next
    run asks them again."""
    min_yield_rate: float = Field(0.05, ge=0, le=1, exclude=True)
    """Share of the owners asked that must get an interest, overall and from each language model; below it the job stops and
    shows three answers. With 0 it never does."""
    retry_failed: bool = Field(False, exclude=True)
    """Ask again also for what was answered without an interest; give it with --force. Not part of the result's identity."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> "InterestsConfig":
        names = [miner.name for miner in self.miners]
        if len(set(names)) != len(names):
            raise ValueError(f"interests.miners: names must differ, found {names}")
        return self


class ClassifierConfig(Section):
    """RLDI: the classifier that tells a trustworthy interest from a bad one."""

    base: PairEncoderConfig = PairEncoderConfig()
    """Sentence encoder it stands on."""
    judged_run: str = ""
    """Folder of an earlier run where a judge labelled these interests: those it rejected are no positives. Empty: none."""
    max_pairs: int = Field(16000, ge=16)
    """Mined interests trained on, at most."""
    epochs: int = Field(10, ge=1)
    """Passes over them."""
    batch_size: int = Field(256, ge=1)
    """Pairs per step, over all workers; each is a negative for the others of its worker."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    folds: int = Field(4, ge=2, le=20)
    """Heads trained; each leaves out one fold of the items, whose interests it labels."""
    valid_share: float = Field(0.15, gt=0, lt=0.5)
    """Share of items held out for calibration and evaluation."""


class VllmJudge(VllmModel):
    """A language model run by vLLM that answers yes or no; its probability of "yes" is the label's.

    It writes one token, whose probabilities are read: there is neither a temperature nor a length to choose.
    """

    name: str = "judge"
    """Name of the judge in messages and in `interest_verdicts`."""
    modality: Literal["text", "both"] = "text"
    """With "both" an interest that only miners with an image found is judged with the item's image beside its text; with
    "text" by a caption that a miner of modality "image" wrote, and without one it is left without a verdict, counted."""
    max_tokens: ClassVar[int] = 1


class OpenAIJudge(EndpointModel):
    """An endpoint that answers yes or no."""

    name: str = "judge"
    """Name of the judge in messages and in `interest_verdicts`."""
    modality: Literal["text", "both"] = "text"
    """With "both" an interest that only miners with an image found is judged with the item's image beside its text; with
    "text" by a caption that a miner of modality "image" wrote, and without one it is left without a verdict, counted."""
    logprobs: bool = True
    """Read the probability of "yes" from log-probabilities; false asks for JSON, for an endpoint that gives none."""
    max_tokens: int = Field(16, ge=1)
    """Longest answer, tokens; a reasoning model's thoughts count."""


LanguageModel = VllmMiner | VllmJudge | EndpointModel
"""A model that is asked by prompts."""


class LabelsConfig(Section):
    """RLDI: which interests are trusted."""

    labelers: tuple[Literal["classifier", "judge", "behavioural"], ...] = Field(("classifier",), min_length=1)
    """Who labels; a labeler may have no opinion of an interest."""
    combine: Literal["mean", "all", "any"] = "mean"
    """Probability of several labelers: mean of their log-odds, the lowest (all must trust), or the highest (one is enough)."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """Probability from which an interest is labelled 1."""
    judge: Annotated[VllmJudge | OpenAIJudge, Field(discriminator="kind")] | None = None
    """The judge, if `labelers` has one."""
    min_lift: float = Field(2.0, ge=1)
    """Behavioural labeler: how many times chance the items of an interest have to follow each other."""

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
    """Which interests enter the vector."""
    interest_weight: float = Field(0.5, ge=0, le=1)
    """Share of the interests' mean vector in the item's vector; the text has the rest."""
    without_miners: tuple[str, ...] = ()
    """Leave out interests that only these miners found: as an ablation it says what a miner is worth."""
    image_encoder: ModelConfig = ModelConfig()
    """Image encoder of CLIP's or SigLIP's kind; an empty name leaves images out."""
