"""Decompositions and solvers: singular matrices and repeated values."""

from __future__ import annotations

from tracelens.analysis.rules.case import Advice, Case, Table, shown, then

_DECOMPOSITIONS = (
    "linalg_svd _linalg_svd svd linalg_eigh _linalg_eigh linalg_eig symeig linalg_qr svdvals "
    "self_adjoint_eig eig qr"
)
_SOLVERS = (
    "linalg_inv inverse linalg_inv_ex linalg_solve _linalg_solve_ex linalg_solve_ex cholesky "
    "linalg_cholesky linalg_cholesky_ex linalg_lu linalg_lu_solve linalg_lstsq linalg_pinv "
    "linalg_solve_triangular triangular_solve cholesky_solve cholesky_inverse logdet slogdet "
    "linalg_slogdet _linalg_slogdet linalg_det _linalg_det matrix_inverse "
    "matrix_solve matrix_solve_ls matrix_triangular_solve matrix_determinant "
    "log_matrix_determinant cholesky_grad lu tridiagonal_solve"
)


def repeated_values(case: Case) -> Advice | None:
    """The gradient of a decomposition divides by the gaps between its values."""
    if not case.backward:
        return None
    return Advice(
        "repeated-singular-values",
        f"the gradient of {case.subject} divides by differences of singular values (or "
        f"eigenvalues), and two of them are equal{then(case)}.",
        f"add small noise to the matrix: {case.words('jitter')}, or use only the values "
        f"({case.words('only-values')}), whose gradient exists",
    )


def singular_matrix(case: Case) -> Advice | None:
    """A matrix without an inverse."""
    return Advice(
        "singular-matrix",
        f"{shown(case.op)} met a matrix that is singular (or not positive definite) within "
        f"rounding{then(case)}.",
        f"{case.words('regularise')}, {case.words('least-squares')}, or float64",
    )


RULES: Table = {
    _DECOMPOSITIONS: (repeated_values, singular_matrix),
    _SOLVERS: (singular_matrix,),
}
