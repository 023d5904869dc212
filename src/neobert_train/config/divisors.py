"""Numbers that divide another, to offer where one does not."""


def find_divisors(number: int) -> list[int]:
    """Return the divisors of a positive number, ascending."""
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
