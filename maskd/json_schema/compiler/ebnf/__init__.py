"""The intermediate form as EBNF, as far as rules without a parameter can say it.

Properties come in the order of the schema. What rules cannot say is left away, and listed. By then every ``not`` has
become shapes, and shapes only allow. So to leave something away lets more through, wherever it stands.
"""
