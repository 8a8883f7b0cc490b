"""What a run would take, before anything is rented: parameters, memory, work, time, communication."""
