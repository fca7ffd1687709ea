"""`stats_config` of a bootstrap: which stats are shown, with which tags and in which buckets."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from meshproxy.errors import ConfigError
from meshproxy.observe.tags import DEFAULT_RULES, Tag, TagExtractor, TagRule

# ms; Envoy's default for every histogram
DEFAULT_BUCKETS: Final[tuple[float, ...]] = (
    0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000,
    300_000, 600_000, 1_800_000, 3_600_000,
)  # fmt: skip

Predicate = Callable[[str], bool]


class StatsSettings:
    """What an exporter asks for each name."""

    def __init__(self) -> None:
        self.tags = TagExtractor()
        self.prometheus_names: dict[str, tuple[str, str]] = {}  # what the exporter made of names: metric and labels
        self.buckets: list[tuple[Predicate, tuple[float, ...]]] = []
        self.patterns: list[Predicate] | None = None  # of the stats_matcher
        self.inclusive: bool = False

    def accepts(self, name: str) -> bool:
        """Whether the stats_matcher lets a stat exist."""
        if self.patterns is None:
            return True
        return any(pattern(name) for pattern in self.patterns) == self.inclusive

    def buckets_of(self, name: str) -> tuple[float, ...]:
        """The upper bounds of a histogram's buckets, ascending; the first setting that matches its name counts."""
        for matches, bounds in self.buckets:
            if matches(name):
                return bounds
        return DEFAULT_BUCKETS


def build_stats_settings(message: Any, path: str, errors: list[ConfigError]) -> StatsSettings:
    """Settings of an envoy.config.metrics.v3.StatsConfig; what is wrong in it is added to `errors`."""
    settings = StatsSettings()
    settings.tags = _build_tags(message, path, errors)
    _build_matcher(message, path, errors, settings)
    for index, setting in enumerate(message.histogram_bucket_settings):
        where = f"{path}.histogram_bucket_settings[{index}]"
        matches = _string_matcher(setting.match, f"{where}.match", errors)
        if not setting.buckets:
            errors.append(ConfigError(f"{where}.buckets", "at least one bucket is required"))
        elif matches is not None:
            settings.buckets.append((matches, tuple(sorted(set(setting.buckets)))))
    return settings


def _build_tags(message: Any, path: str, errors: list[ConfigError]) -> TagExtractor:
    use_defaults = not message.HasField("use_all_default_tags") or message.use_all_default_tags.value
    rules: list[TagRule] = list(DEFAULT_RULES) if use_defaults else []
    fixed: list[Tag] = []
    seen: set[str] = {rule.tag for rule in rules}
    for index, specifier in enumerate(message.stats_tags):
        where = f"{path}.stats_tags[{index}]"
        kind = specifier.WhichOneof("tag_value")
        if specifier.tag_name in seen:
            errors.append(ConfigError(where, f"the tag '{specifier.tag_name}' is specified more than once"))
            continue
        seen.add(specifier.tag_name)
        if kind == "fixed_value":
            fixed.append((specifier.tag_name, specifier.fixed_value))
        elif specifier.regex:
            rules += _custom_rule(specifier.tag_name, specifier.regex, where, errors)
        else:
            defaults = [rule for rule in DEFAULT_RULES if rule.tag == specifier.tag_name]
            rules += defaults
            if not defaults:
                reason = f"no regex is given, and '{specifier.tag_name}' is no default tag"
                errors.append(ConfigError(where, reason))
    return TagExtractor(tuple(rules), tuple(fixed))


def _custom_rule(tag: str, regex: str, where: str, errors: list[ConfigError]) -> list[TagRule]:
    try:
        pattern = re.compile(regex)
    except re.error as error:
        errors.append(ConfigError(f"{where}.regex", f"invalid regex '{regex}': {error}"))
        return []
    if pattern.groups == 0:
        errors.append(ConfigError(f"{where}.regex", f"'{regex}' has no group to take the value from"))
        return []
    return [TagRule(tag, pattern)]


def _build_matcher(message: Any, path: str, errors: list[ConfigError], settings: StatsSettings) -> None:
    if not message.HasField("stats_matcher"):
        return
    matcher = message.stats_matcher
    kind = matcher.WhichOneof("stats_matcher")
    if kind == "reject_all":
        settings.patterns, settings.inclusive = [], bool(matcher.reject_all)
        return
    if kind is None:
        return
    settings.inclusive = kind == "inclusion_list"
    patterns = [
        _string_matcher(pattern, f"{path}.stats_matcher.{kind}.patterns[{index}]", errors)
        for index, pattern in enumerate(getattr(matcher, kind).patterns)
    ]
    settings.patterns = [pattern for pattern in patterns if pattern is not None]


def _string_matcher(message: Any, path: str, errors: list[ConfigError]) -> Predicate | None:
    kind = message.WhichOneof("match_pattern")
    if kind == "safe_regex":
        try:
            return _fullmatch(re.compile(message.safe_regex.regex))
        except re.error as error:
            errors.append(ConfigError(f"{path}.safe_regex", f"invalid regex '{message.safe_regex.regex}': {error}"))
            return None
    if kind not in {"exact", "prefix", "suffix", "contains"}:
        errors.append(ConfigError(path, "exact, prefix, suffix, contains or safe_regex is required"))
        return None
    return _literal(kind, getattr(message, kind), ignore_case=message.ignore_case)


def _fullmatch(pattern: re.Pattern[str]) -> Predicate:
    return lambda name: pattern.fullmatch(name) is not None


def _literal(kind: str, text: str, *, ignore_case: bool) -> Predicate:
    expressions = {"exact": "{}", "prefix": "{}.*", "suffix": ".*{}", "contains": ".*{}.*"}
    flags = re.DOTALL | (re.IGNORECASE if ignore_case else 0)
    return _fullmatch(re.compile(expressions[kind].format(re.escape(text)), flags))
