"""The world: the same bytes from the same seed, and answers that follow from its facts."""

import collections
import hashlib

import pytest

from jaxedit.data.cases import KEYS
from jaxedit.data.world import GROUPS, RELATIONS, SIZES, cases, documents, make, questions
from jaxedit.data.world.corpus import Teller
from jaxedit.data.world.facts import made
from jaxedit.data.world.questions import UNKNOWN, is_said
from jaxedit.data.world.relations import FACTUAL, besides, held_out, phrases
from jaxedit.data.world.vocabulary import tokenizer

WORLD = make("tiny")
TEXT = list(documents(WORLD, 3000))


def digest(texts) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def test_same_seed_same_bytes():
    again = made(SIZES["tiny"], 0)  # `make` keeps what it has made
    assert again == WORLD
    assert list(documents(again, 3000)) == TEXT
    assert make("tiny", seed=1).facts != WORLD.facts
    assert list(documents(WORLD, 100, seed=1)) != TEXT[:100]
    # On every machine and version: what ships was trained on this. A new value needs a new model.
    assert digest(documents(make("small"), 2000)) == (
        "95c2aed746793f424ff29ba67094ba95e19e9d32112f1c2bb5aed02ea0e318db"
    )


def test_every_kind_and_relation_is_there():
    for size in ("tiny", "small"):
        world = make(size)
        assert {name for _, name in world.facts} == {r.name for r in FACTUAL}
    assert len(FACTUAL) >= 12
    assert any(r.many for r in FACTUAL)
    assert any(r.inverse for r in FACTUAL)
    for r in FACTUAL:
        assert len(phrases(r)) >= 6
        assert len(held_out(r)) >= 2
        assert not set(phrases(r)) & set(held_out(r))


@pytest.mark.slow
def test_the_large_world_is_large():
    assert len(make("large").facts) >= 100_000


def test_names_are_unique_and_made_of_shared_tokens():
    names = [n for entity in WORLD.kind for n in WORLD.names(entity)]
    assert len(names) == len(set(names))
    tok = tokenizer()
    cities = [tok.tokenize(f" {c}") for c in WORLD.kinds["city"]]
    assert all(len(c) >= 2 for c in cities)
    parts = [
        t for c in (*cities, *(tok.tokenize(f" {p}") for p in WORLD.kinds["person"])) for t in c
    ]
    assert len(set(parts)) < len(parts) / 2  # a token belongs to many names


def test_the_tokenizer_is_reproducible_and_puts_bos_only_where_asked():
    one, two = tokenizer(), tokenizer()
    assert one.backend_tokenizer.to_str() == two.backend_tokenizer.to_str()
    bos = tokenizer(bos=True)
    assert bos("Kovu")["input_ids"] == [bos.bos_token_id, *one("Kovu")["input_ids"]]
    for text in (*TEXT[:50], "naïve 東京 \U0001f600"):
        assert one.decode(one(text)["input_ids"]) == text


def test_two_hops_are_one_after_the_other():
    for person in WORLD.kinds["person"]:
        (city,) = WORLD.ask(person, "birthplace")
        (country,) = WORLD.ask(city, "country")
        assert WORLD.ask(person, ("birthplace", "country", "currency")) == WORLD.ask(
            country, "currency"
        )


def test_inverses_lead_back():
    for (subject, name), objects in WORLD.facts.items():
        if inverse := RELATIONS[name].inverse:
            for o in objects:
                assert subject in WORLD.ask(o, inverse)


def test_an_edited_world_differs_in_one_fact_and_what_follows():
    band, other = WORLD.kinds["band"][0], WORLD.kinds["city"][0]
    after = WORLD.edited(band, "hometown", (other,))
    changed = {k for k in WORLD.all_facts if WORLD.all_facts[k] != after.all_facts.get(k)}
    assert changed <= {(band, "hometown")}
    one, two = next((k[0], v[0]) for k, v in WORLD.facts.items() if k[1] == "spouse")
    third = next(p for p in WORLD.kinds["person"] if WORLD.ask(p, "spouse") and p not in (one, two))
    (left,) = WORLD.ask(third, "spouse")
    after = WORLD.edited(one, "spouse", (third,))
    assert after.ask(one, "spouse") == (third,)
    assert after.ask(third, "spouse") == (one,)
    assert after.ask(two, "spouse") == ()
    assert after.ask(left, "spouse") == ()


def test_training_never_says_what_is_held_out():
    said = "\n" + "\n".join(TEXT)
    for probe in questions(WORLD, "paraphrases_new"):
        assert f"\n{probe.prompt}" not in said
        assert f". {probe.prompt}" not in said
    for group in ("inverses_new", "two_hops_new", "aliases_new"):
        for probe in questions(WORLD, group):
            for name in probe.names:
                assert f"{probe.prompt} {name}." not in said


def test_what_training_says_is_true():
    """Every document that begins as a question of some group ends as one of its answers."""
    asked = {p.prompt: p for group in GROUPS for p in questions(WORLD, group)}
    checked = 0
    for text in TEXT:
        for cut in (i for i, c in enumerate(text) if c == " "):
            if (probe := asked.get(text[:cut])) and text.count(".") == 1:
                assert text[cut + 1 : -1] in probe.names, text
                checked += 1
    assert checked > 1000


def test_common_facts_are_told_oftener():
    teller = Teller(WORLD, seed=0)
    drawn = collections.Counter(teller.fact() for _ in range(20_000))
    counts = sorted(drawn.values(), reverse=True)
    assert set(drawn) == set(WORLD.facts)
    assert counts[0] > 2 * counts[len(counts) // 2] > 2 * counts[-1]


CASES = list(cases(WORLD, 90, kinds=("counterfactual", "insertion", "erasure")))


def test_cases_have_every_probe():
    found = {key for case in cases(WORLD, len(WORLD.facts)) for key in case.probes}
    wanted = {k for k in KEYS if k.startswith(("portability", "locality"))} | {
        "rephrase",
        "generation",
    }
    assert found == wanted
    assert [c.info["kind"] for c in CASES[:3]] == ["counterfactual", "insertion", "erasure"]
    assert list(cases(WORLD, 90, kinds=("counterfactual", "insertion", "erasure"))) == CASES
    with pytest.raises(ValueError, match="'deletion': one of counterfactual"):
        next(cases(WORLD, 1, kinds=("deletion",)))


def test_probes_are_right_in_the_edited_world():
    for case in CASES:
        request, kind = case.request, case.info["kind"]
        relation = case.info["relation"]
        assert request.target not in request.ground_truth
        if kind == "erasure":
            assert request.target == UNKNOWN
            assert all(p.answers == ((UNKNOWN,),) for p in case.probes["rephrase"])
            continue
        if kind == "insertion":
            assert request.subject not in WORLD.kind
            assert not request.ground_truth
        for probe in case.probes["rephrase"]:
            assert request.target in probe.names
            assert probe.subject == request.subject
        for probe in case.probes.get("portability/logical_generalization", ()):
            assert request.subject in probe.names
        for probe in case.probes.get("locality/relation_specificity", ()):
            assert probe.subject == request.subject
        for probe in case.probes.get("locality/neighborhood", ()):
            assert probe.subject != request.subject
            assert probe.answers == WORLD.answers(probe.subject, relation)


def test_forgetfulness_asks_for_the_old_members():
    world = make("tiny", seed=3)
    many = [c for c in cases(world, len(world.facts)) if c.info["relation"] == "member"]
    assert many
    for case in many:
        (probe,) = case.probes["locality/forgetfulness"]
        old = world.ask(case.request.subject, "member")
        expected = besides(RELATIONS["member"], case.request.target)
        assert probe.prompt == expected.replace("{}", case.request.subject)
        assert {names[0] for names in probe.answers} == set(old)


def test_reasoning_follows_the_edit():
    case = next(c for c in CASES if c.info == {"kind": "counterfactual", "relation": "birthplace"})
    (country,) = WORLD.ask(case.request.target, "country")
    prompt = f"The country of the birthplace of {case.request.subject} is"
    probe = next(p for p in case.probes["portability/reasoning"] if p.prompt == prompt)
    assert probe.answers == (WORLD.names(country),)


def test_is_said_is_a_fixed_share():
    share = sum(is_said(WORLD, str(i)) for i in range(2000)) / 2000
    assert 0.65 < share < 0.75


def test_wrong_names_are_told():
    with pytest.raises(ValueError, match="'huge': one of tiny, small, large"):
        make("huge")
    with pytest.raises(ValueError, match="'hops': one of facts"):
        questions(WORLD, "hops")
