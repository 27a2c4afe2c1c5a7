"""Operations on a feed."""
