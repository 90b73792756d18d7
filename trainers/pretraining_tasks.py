"""The models that are pretrained: masked LM, or generator and discriminator."""

from deberta_tf import files
from deberta_tf.backbone import DebertaBackbone
from deberta_tf.masked_lm import DebertaMaskedLM, DebertaMaskedLMPreprocessor
from deberta_tf.replaced_token import DebertaReplacedTokenDetection, make_generator
from trainers import run, vocabulary


def build_task(config, sequence_length):
    """The task of `config.objective` with its preprocessor: of a preset, or new.

    Raises:
        ValueError: if the tokenizer or the preset is missing, or they do not match.
    """
    tokenizer = vocabulary.load_tokenizer(config)
    preprocessor = DebertaMaskedLMPreprocessor(
        tokenizer, sequence_length, config.mask_rate, config.max_ngram or 3
    )
    if config.preset is not None and config.load_weights:
        return _loaded(config, preprocessor)
    if config.preset is None:
        backbone = DebertaBackbone(
            tokenizer.vocabulary_size(), **config.sizes(), dtype=config.precision
        )
    else:
        backbone = DebertaBackbone.from_preset(
            config.preset,
            load_weights=False,
            vocabulary_size=tokenizer.vocabulary_size(),
            dtype=config.precision,
            **config.options(),
        )
    if config.objective != "replaced_token":
        check_causal(config, backbone)
        return DebertaMaskedLM(backbone, preprocessor, config.enhanced_mask_decoder)
    return DebertaReplacedTokenDetection(
        backbone,
        make_generator(backbone, config.generator_layers, config.enhanced_mask_decoder),
        config.embedding_sharing,
        tokenizer.vocabulary_size(),
        preprocessor,
    )


def check_causal(config, backbone):
    """Refuses an autoregressive model that looks ahead.

    Raises:
        UsageError: if it has the convolution, which sees the next token.
    """
    if config.objective == "masked_and_causal" and backbone.convolution_kernel_size:
        raise files.UsageError(
            "objective masked_and_causal needs a model without the convolution, which "
            f"looks ahead. Received: convolution_kernel_size="
            f"{backbone.convolution_kernel_size}"
        )


def compile_task(task, config, schedule):
    """Compiles the task for `fit`."""
    optimizer = run.make_optimizer(config, schedule)
    if config.objective != "replaced_token":
        run.compile_task(task, config, optimizer)
        return
    decoupled = config.decoupled
    if decoupled is None:
        decoupled = config.embedding_sharing != "es"
    optimizers = [optimizer]
    if decoupled:
        optimizers.append(run.make_optimizer(config, _own_schedule(config, schedule)))
    run.compile_task(
        task,
        config,
        *optimizers,
        discriminator_weight=config.discriminator_weight,
        decoupled=decoupled,
    )


def _own_schedule(config, schedule):
    """The discriminator's: the generator's, with another peak where one is set."""
    rate = config.discriminator_learning_rate or config.learning_rate
    settings = {**schedule.get_config(), "learning_rate": rate}
    return type(schedule).from_config(settings)


def _loaded(config, preprocessor):
    tokenizer = preprocessor.tokenizer
    arguments = {
        "preprocessor": preprocessor,
        "dtype": config.precision,
        "compile": False,
        **config.options(),
    }
    if config.objective != "replaced_token":
        task = DebertaMaskedLM.from_preset(config.preset, **arguments)
        check_causal(config, task.backbone)
    else:
        task = DebertaReplacedTokenDetection.from_preset(
            config.preset, num_tokens=tokenizer.vocabulary_size(), **arguments
        )
        found = task.embedding_sharing
        if found != config.embedding_sharing:
            raise files.UsageError(
                f"preset {config.preset} has embedding_sharing={found!r}. Received: "
                f"{config.embedding_sharing!r}"
            )
    vocabulary.check_rows(config, tokenizer, task.backbone)
    return task
