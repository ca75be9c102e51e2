"""Rows in which every two values of two factors meet, instead of the full product."""

from itertools import combinations, product


def in_pairs(factors):
    """Rows that hold every pair of values of different factors at least once.

    Parameters
    ----------
    factors : dict of str to sequence
        The values of each factor.

    Returns
    -------
    list of dict
        A row a dict; far fewer than the full product.
    """
    names = list(factors)
    missing = {
        frozenset(((a, i), (b, j)))
        for a, b in combinations(names, 2)
        for i, j in product(range(len(factors[a])), range(len(factors[b])))
    }
    rows = []
    while missing:
        # A row begins with a pair that is missing; each further factor takes the value with which most missing pairs are made.
        row = dict(min(missing, key=lambda pair: sorted((names.index(a), i) for a, i in pair)))
        for name in sorted(set(names) - set(row), key=names.index):
            made = [
                sum(frozenset(((name, i), other)) in missing for other in row.items())
                for i in range(len(factors[name]))
            ]
            # Of equal ones another each time.
            row[name] = max(range(len(made)), key=lambda i: (made[i], (i + len(rows)) % len(made)))
        missing -= {frozenset(pair) for pair in combinations(row.items(), 2)}
        rows.append({name: factors[name][row[name]] for name in names})
    return rows
