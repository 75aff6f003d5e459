package cluster

import "time"

// NodeStatus is what a node's agent tells of it. Every value is probed when
// asked for, never remembered.
type NodeStatus struct {
	Name       string            `json:"name"`
	Role       Role              `json:"role"`
	Version    string            `json:"version"` // of kuorum
	Started    time.Time         `json:"started"` // of the agent, not of the node
	Ready      bool              `json:"ready"`   // all components are
	Components []ComponentStatus `json:"components"`
}

// ComponentStatus is one program of a node.
type ComponentStatus struct {
	Name string `json:"name"`
	// Phase is waiting, starting, ready, backoff, stopping or stopped.
	Phase    string    `json:"phase"`
	PID      int       `json:"pid,omitempty"` // in the machine's own numbering
	Since    time.Time `json:"since"`         // of the phase
	Restarts int       `json:"restarts"`
	LastExit string    `json:"lastExit,omitempty"`
	Message  string    `json:"message,omitempty"` // why it is not ready
}
