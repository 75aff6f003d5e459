package cluster

// Quorum is how many of a cluster's voters must agree on a write: more than
// half of them, so that two groups can never both have it.
func Quorum(voters int) int { return max(voters, 0)/2 + 1 }

// MayLose is how many voters can fail while the others still are a quorum.
func MayLose(voters int) int { return max(voters-Quorum(voters), 0) }
