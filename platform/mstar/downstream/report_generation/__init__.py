"""Report generation: slides in, reports out, scored against the whole reference.

options       what a caller can set
texts         which samples have a report; tokens for teacher forcing
facts         findings that are known to be true, and the phrases that name them
measures      what is counted of a generated text and its reference
fit           training, by the platform's one loop
writing       texts of a trained model
family        a study of a sweep
samples_page  texts beside their references
Formats and commands: platform/docs/report-generation.md.
"""
