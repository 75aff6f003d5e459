package cluster

import "time"

// NodeStatus is what a node's agent tells of it. Every value is probed when
// asked for, never remembered.
type NodeStatus struct {
	Name       string            `json:"name"`
	Role       Role              `json:"role"`
	Version    string            `json:"version"` // of kuorum
	Time       time.Time         `json:"time"`    // by the node's own clock, as it answered
	Started    time.Time         `json:"started"` // of the agent, not of the node
	Ready      bool              `json:"ready"`   // all components are
	Components []ComponentStatus `json:"components"`
}

// ComponentReady tells whether the component of that name does its work; one
// that the node does not have does not.
func (s NodeStatus) ComponentReady(name string) bool {
	for _, c := range s.Components {
		if c.Name == name {
			return c.Phase == "ready"
		}
	}
	return false
}

// NodeReport is a node as somebody else sees it: what its agent answered, or
// why it did not.
type NodeReport struct {
	Name    string `json:"name"`
	Role    Role   `json:"role"`
	Address string `json:"address"`
	// Error is why the agent does not answer, in words for people; Status is
	// nil then.
	Error  string      `json:"error,omitempty"`
	Status *NodeStatus `json:"status,omitempty"`
	// ClockOffset is by how much the node's clock is ahead of the asker's, as
	// far as the time that the answer took can tell.
	ClockOffset Duration `json:"clockOffset"`
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
